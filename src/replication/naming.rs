//! In which order a replica names its databases as the primary does, and which it cannot name at all.
//!
//! Pure and total: whatever a racing or hostile primary says, the plan ends, and no step takes a name that is in the
//! way of another database. A database that cannot have its name is put aside by itself; the others go on.
//! Not here: carrying the plan out (`follower::keeper`), files of this node in the way (`store::follow`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;

use crate::types::{DbId, DbName};

/// Suffixes of the files that SQLite keeps beside a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Suffix of the file that tells a database's position.
const POSITION: &str = "-pos";
/// Special files at the root of the mount.
const SPECIAL: [&[u8]; 2] = [b".primary", b".lag"];
/// How names for the time being begin.
const TEMPORARY: &str = ".weir-moving-";

/// One step of bringing local names in line with the primary's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Naming {
    pub(crate) id: DbId,
    pub(crate) name: DbName,
}

/// Why a database cannot have its name, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Obstacle {
    /// Another database of the primary has the same name.
    Same(DbId),
    /// The paths of the two need a file and a directory of one name.
    Inside(DbName),
    /// The name is that of a file that belongs to another database.
    Companion(DbName),
    /// The name is that of a special file.
    Special,
    /// A database of this node still has a name that is in the way.
    Held(DbName),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(id) => {
                write!(f, "the primary says that database {id} has this name too: rename one there")
            }
            Self::Inside(other) => {
                write!(
                    f,
                    "{other} needs a file where this one needs a directory, or the reverse: "
                )?;
                f.write_str("rename one on the primary")
            }
            Self::Companion(other) => {
                write!(f, "a file of this name would belong to {other}: rename one on the primary")
            }
            Self::Special => f.write_str("the name is reserved: rename it on the primary"),
            Self::Held(other) => write!(f, "waits until {other} has given way here"),
        }
    }
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    /// In this order each name is free when it is taken.
    pub(crate) steps: Vec<Naming>,
    /// Databases that keep the name they have here, or none.
    pub(crate) aside: Vec<(DbId, Obstacle)>,
}

/// Names that are taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    names: BTreeMap<DbName, DbId>,
}

impl Taken {
    pub(crate) fn insert(&mut self, name: DbName, id: DbId) {
        self.names.insert(name, id);
    }

    /// A database gives a name up.
    pub(crate) fn remove(&mut self, name: &DbName, id: DbId) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }

    fn other(&self, bytes: &[u8], id: DbId) -> Option<(DbId, DbName)> {
        let (name, holder) = self.names.get_key_value(bytes)?;
        (*holder != id).then(|| (*holder, name.clone()))
    }

    /// Who has a name that does not go together with this one, if anyone but `id` does.
    pub(crate) fn in_the_way(&self, name: &DbName, id: DbId) -> Option<(DbId, Obstacle)> {
        let bytes = name.as_bytes();
        if let Some((other, _)) = self.other(bytes, id) {
            return Some((other, Obstacle::Same(other)));
        }
        let slashes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut above = slashes.filter_map(|(at, _)| self.other(&bytes[..at], id));
        if let Some((other, name)) = above.next().or_else(|| self.below(bytes, id)) {
            return Some((other, Obstacle::Inside(name)));
        }
        let whole = COMPANIONS.iter().filter_map(|suffix| bytes.strip_suffix(suffix.as_bytes()));
        let mut bases = whole.chain(bytes.strip_suffix(POSITION.as_bytes()));
        let companions = COMPANIONS.iter().map(|suffix| [bytes, suffix.as_bytes()].concat());
        let found = bases.find_map(|base| self.other(base, id));
        let found = found.or_else(|| companions.into_iter().find_map(|c| self.other(&c, id)));
        found.map(|(other, name)| (other, Obstacle::Companion(name)))
    }

    /// A database in the directory that a name would be.
    fn below(&self, bytes: &[u8], id: DbId) -> Option<(DbId, DbName)> {
        let inside = [bytes, b"/"].concat();
        let from = (Bound::Included(inside.as_slice()), Bound::Unbounded);
        let mut inner = self.names.range::<[u8], _>(from);
        let (name, holder) = inner
            .by_ref()
            .take_while(|(name, _)| name.as_bytes().starts_with(&inside))
            .find(|(_, holder)| **holder != id)?;
        Some((*holder, name.clone()))
    }
}

/// Whether one of two paths lies below the other.
fn is_nested(a: &DbName, b: &DbName) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    long.get(short.len()) == Some(&b'/') && long.starts_with(short)
}

/// How to come from the names that databases have here to those they have on the primary. A local database that is
/// not wanted, or that is `busy` (a step under way gives it that name), stays as it is.
pub(crate) fn naming_plan(
    local: &HashMap<DbId, DbName>,
    wanted: &HashMap<DbId, DbName>,
    busy: &HashMap<DbId, DbName>,
) -> Plan {
    let mut plan = Plan::default();
    let (accepted, refused) = accept(local, wanted);
    let mut now = Taken::default();
    for (id, name) in local.iter().chain(busy) {
        now.insert(name.clone(), *id);
    }
    let mut planner = Planner { wanted, accepted: &accepted, now, at: local.clone() };
    planner.park(&refused, busy, &mut plan.steps);
    plan.aside.extend(refused);
    let mut todo: Vec<DbId> = accepted.names.values().copied().collect();
    todo.retain(|id| !busy.contains_key(id) && local.get(id) != wanted.get(id));
    todo.sort_unstable();
    planner.order(&todo, &mut plan);
    plan
}

/// Chooses the databases whose names go together. Who has its name already keeps it.
fn accept(
    local: &HashMap<DbId, DbName>,
    wanted: &HashMap<DbId, DbName>,
) -> (Taken, Vec<(DbId, Obstacle)>) {
    let names: HashSet<&[u8]> = wanted.values().map(DbName::as_bytes).collect();
    let is_companion = |name: &DbName| {
        let bases = COMPANIONS.iter().filter_map(|s| name.as_bytes().strip_suffix(s.as_bytes()));
        bases.into_iter().any(|base| names.contains(base))
    };
    let is_position = |name: &DbName| {
        name.as_bytes().strip_suffix(POSITION.as_bytes()).is_some_and(|base| names.contains(base))
    };
    let mut candidates: Vec<_> = wanted
        .iter()
        .map(|(id, name)| {
            let is_to_move = local.get(id) != Some(name);
            let gives_way = is_companion(name) || (is_to_move && is_position(name));
            (gives_way, is_to_move, *id, name)
        })
        .collect();
    candidates.sort_unstable();
    let (mut accepted, mut refused) = (Taken::default(), Vec::new());
    for (_, is_to_move, id, name) in candidates {
        let obstacle = if is_to_move && SPECIAL.contains(&name.as_bytes()) {
            Some(Obstacle::Special)
        } else {
            accepted.in_the_way(name, id).map(|(_, obstacle)| obstacle)
        };
        match obstacle {
            // A file that is there hides the special file of its name, and harms nobody.
            Some(Obstacle::Companion(_)) if is_position(name) && !is_to_move => {
                accepted.insert(name.clone(), id);
            }
            Some(obstacle) => refused.push((id, obstacle)),
            None => accepted.insert(name.clone(), id),
        }
    }
    (accepted, refused)
}

struct Planner<'a> {
    wanted: &'a HashMap<DbId, DbName>,
    accepted: &'a Taken,
    /// The names as they are after the steps so far.
    now: Taken,
    at: HashMap<DbId, DbName>,
}

impl Planner<'_> {
    fn name(&mut self, id: DbId, name: DbName, steps: &mut Vec<Naming>) {
        if let Some(before) = self.at.insert(id, name.clone()) {
            self.now.remove(&before, id);
        }
        self.now.insert(name.clone(), id);
        steps.push(Naming { id, name });
    }

    /// A name that nobody has or wants.
    fn temporary(&self, id: DbId) -> Option<DbName> {
        let numbers = 0..=self.now.names.len() + self.accepted.names.len();
        numbers.filter_map(|n| DbName::new(format!("{TEMPORARY}{id}-{n}").as_bytes()).ok()).find(
            |name| {
                self.now.in_the_way(name, id).is_none()
                    && self.accepted.in_the_way(name, id).is_none()
            },
        )
    }

    /// Gets databases that cannot have their name out of the way of those that can.
    fn park(
        &mut self,
        refused: &[(DbId, Obstacle)],
        busy: &HashMap<DbId, DbName>,
        steps: &mut Vec<Naming>,
    ) {
        for (id, _) in refused {
            let Some(name) = self.at.get(id).filter(|_| !busy.contains_key(id)) else { continue };
            if self.accepted.in_the_way(name, *id).is_some()
                && let Some(temporary) = self.temporary(*id)
            {
                self.name(*id, temporary, steps);
            }
        }
    }

    /// Who must move before `id` can have its name.
    fn blocker(&self, id: DbId, name: &DbName) -> Option<(DbId, DbName)> {
        if let Some((other, _)) = self.now.in_the_way(name, id) {
            let held = self.at.get(&other).cloned();
            return Some((other, held.unwrap_or_else(|| name.clone())));
        }
        let own = self.at.get(&id)?;
        is_nested(own, name).then(|| (id, own.clone()))
    }

    /// Orders the steps; a cycle is cut with a name for the time being.
    fn order(&mut self, todo: &[DbId], plan: &mut Plan) {
        let mut waiting: HashMap<DbId, Vec<DbId>> = HashMap::new();
        let mut left: HashSet<DbId> = todo.iter().copied().collect();
        let mut ready: Vec<DbId> = todo.iter().rev().copied().collect();
        let (mut cut, mut waited_for) = (HashSet::new(), Vec::new());
        loop {
            while let Some(id) = ready.pop() {
                let Some(name) = self.wanted.get(&id).filter(|_| left.contains(&id)) else {
                    continue;
                };
                match self.blocker(id, name) {
                    Some((other, _)) => {
                        waiting.entry(other).or_default().push(id);
                        waited_for.push(other);
                    }
                    None => {
                        left.remove(&id);
                        self.name(id, name.clone(), &mut plan.steps);
                        ready.extend(waiting.remove(&id).unwrap_or_default());
                    }
                }
            }
            // Everyone left waits for somebody.
            let Some(id) = waited_for.pop() else { break };
            if left.contains(&id)
                && self.at.contains_key(&id)
                && let Some(waiters) = waiting.remove(&id)
                && cut.insert(id)
                && let Some(temporary) = self.temporary(id)
            {
                self.name(id, temporary, &mut plan.steps);
                ready.extend(waiters);
            }
        }
        for id in todo.iter().filter(|id| left.contains(id)) {
            if let Some((_, held)) = self.wanted.get(id).and_then(|name| self.blocker(*id, name)) {
                plan.aside.push((*id, Obstacle::Held(held)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DbName {
        DbName::new(text.as_bytes()).unwrap()
    }

    fn names(entries: &[(u64, &str)]) -> HashMap<DbId, DbName> {
        entries.iter().map(|(id, text)| (DbId::new(*id), name(text))).collect()
    }

    type Databases = HashMap<DbId, DbName>;

    /// Carries a plan out, and fails if a step takes a name that is in the way of another database, or if a database
    /// is neither where it should be nor said to be aside. Returns the plan and where the databases are then.
    fn check(local: &Databases, wanted: &Databases, busy: &Databases) -> (Plan, Databases) {
        let plan = naming_plan(local, wanted, busy);
        let mut now = local.clone();
        for step in &plan.steps {
            assert!(wanted.contains_key(&step.id) && !busy.contains_key(&step.id), "{step:?}");
            let mut others = Taken::default();
            for (id, name) in now.iter().chain(busy).filter(|(id, _)| **id != step.id) {
                others.insert(name.clone(), *id);
            }
            let in_the_way = others.in_the_way(&step.name, step.id);
            assert_eq!(in_the_way, None, "{step:?} of {plan:?}");
            if let Some(before) = now.insert(step.id, step.name.clone()) {
                assert!(!is_nested(&before, &step.name), "{step:?} lies in its own place");
            }
        }
        assert!(plan.steps.len() <= 2 * wanted.len(), "{plan:?}");
        let aside: HashSet<DbId> = plan.aside.iter().map(|(id, _)| *id).collect();
        assert_eq!(aside.len(), plan.aside.len(), "twice aside: {plan:?}");
        for (id, name) in wanted.iter().filter(|(id, _)| !busy.contains_key(id)) {
            assert_ne!(now.get(id) == Some(name), aside.contains(id), "{id} in {plan:?}");
        }
        (plan, now)
    }

    fn check_named(local: &[(u64, &str)], wanted: &[(u64, &str)]) -> usize {
        let (plan, now) = check(&names(local), &names(wanted), &HashMap::new());
        assert_eq!(plan.aside, []);
        assert_eq!(now, names(wanted));
        plan.steps.len()
    }

    #[test]
    fn names_are_free_when_they_are_taken() {
        assert_eq!(check_named(&[], &[(1, "a")]), 1);
        assert_eq!(check_named(&[(1, "a")], &[(1, "a")]), 0);
        assert_eq!(check_named(&[(1, "a"), (2, "b")], &[(1, "b"), (2, "c")]), 2);
        assert_eq!(check_named(&[(1, "a"), (2, "b")], &[(1, "b"), (2, "a")]), 3);
        let circle = [(1, "b"), (2, "c"), (3, "a")];
        assert_eq!(check_named(&[(1, "a"), (2, "b"), (3, "c")], &circle), 4);
    }

    #[test]
    fn a_file_gives_way_to_a_directory_of_its_name_and_the_reverse() {
        assert_eq!(check_named(&[(1, "a"), (2, "q")], &[(1, "x"), (2, "a/b")]), 2);
        assert_eq!(check_named(&[(2, "q"), (1, "a/b")], &[(2, "a"), (1, "x")]), 2);
        assert_eq!(check_named(&[(1, "a")], &[(1, "a/a")]), 2);
        assert_eq!(check_named(&[(1, "a/a")], &[(1, "a")]), 2);
        assert_eq!(check_named(&[(1, "a"), (2, "b/c")], &[(1, "b"), (2, "a/c")]), 3);
    }

    #[test]
    fn names_as_long_as_they_may_be_change_places() {
        let (a, b) = ("a".repeat(255), "b".repeat(255));
        assert_eq!(check_named(&[(1, &a), (2, &b)], &[(1, &b), (2, &a)]), 3);
    }

    fn check_aside(local: &[(u64, &str)], wanted: &[(u64, &str)], expected: &[(u64, Obstacle)]) {
        let (plan, _) = check(&names(local), &names(wanted), &HashMap::new());
        let expected: Vec<_> = expected.iter().map(|(id, o)| (DbId::new(*id), o.clone())).collect();
        assert_eq!(plan.aside, expected, "{plan:?}");
    }

    #[test]
    fn what_cannot_be_is_put_aside_by_itself() {
        let same = |id| Obstacle::Same(DbId::new(id));
        check_aside(&[], &[(1, "a"), (2, "a"), (3, "b")], &[(2, same(1))]);
        // Who has the name keeps it.
        check_aside(&[(2, "a")], &[(1, "a"), (2, "a")], &[(1, same(2))]);
        check_aside(&[], &[(1, "a"), (2, "a/b")], &[(2, Obstacle::Inside(name("a")))]);
        check_aside(&[], &[(1, ".lag"), (2, "d/.lag")], &[(1, Obstacle::Special)]);
        let of_x = || Obstacle::Companion(name("x"));
        check_aside(&[], &[(1, "x-pos"), (2, "x")], &[(1, of_x())]);
        check_aside(&[(1, "x-pos")], &[(1, "x-pos"), (2, "x")], &[]);
        check_aside(&[(1, "x-wal")], &[(1, "x-wal"), (2, "x")], &[(1, of_x())]);
        // What is still here and not wanted holds its name.
        check_aside(&[(9, "a")], &[(1, "a")], &[(1, Obstacle::Held(name("a")))]);
    }

    #[test]
    fn what_is_put_aside_makes_room_for_those_that_can_be() {
        let (plan, now) = check(
            &names(&[(1, "a"), (2, "b")]),
            &names(&[(1, "a"), (2, "a"), (3, "b")]),
            &HashMap::new(),
        );
        assert_eq!(plan.aside, [(DbId::new(2), Obstacle::Same(DbId::new(1)))]);
        assert_eq!(now[&DbId::new(3)], name("b"));
        assert_eq!(now[&DbId::new(2)], name(&format!("{TEMPORARY}0000000000000002-0")));
    }

    #[test]
    fn a_large_catalog_in_which_everyone_waits_for_the_next_is_planned_at_once() {
        let count = 20_000;
        let at = |n: u64| name(&format!("d/{n}"));
        let local: Databases = (0..count).map(|n| (DbId::new(n), at(n))).collect();
        let wanted = (0..count).map(|n| (DbId::new(n), at((n + 1) % count))).collect();
        let plan = naming_plan(&local, &wanted, &HashMap::new());
        assert_eq!((plan.steps.len(), plan.aside.len()), (20_001, 0));
    }

    fn any_name() -> impl Strategy<Value = DbName> {
        let part = prop::sample::select(vec!["a", "b", "a-wal", "a-pos", "b-journal", ".lag", "c"]);
        let path = prop::collection::vec(part, 1..4).prop_map(|parts| name(&parts.join("/")));
        let temporary =
            (0..8_u64, 0..2).prop_map(|(id, n)| name(&format!("{TEMPORARY}{}-{n}", DbId::new(id))));
        let long = prop::sample::select(vec!["x", "y"]).prop_map(|part| name(&part.repeat(255)));
        prop_oneof![12 => path, 1 => temporary, 1 => long]
    }

    fn any_databases() -> impl Strategy<Value = Databases> {
        prop::collection::hash_map((0..8_u64).prop_map(DbId::new), any_name(), 0..8)
    }

    /// Databases as a node can have them.
    fn any_local() -> impl Strategy<Value = Databases> {
        any_databases().prop_map(|all| {
            let mut taken = Taken::default();
            let mut sorted: Vec<_> = all.into_iter().collect();
            sorted.sort_unstable();
            sorted.retain(|(id, name)| {
                let fits = taken.in_the_way(name, *id).is_none();
                if fits {
                    taken.insert(name.clone(), *id);
                }
                fits
            });
            sorted.into_iter().collect()
        })
    }

    proptest! {
        #[test]
        fn every_catalog_has_a_plan_that_ends(
            local in any_local(),
            wanted in any_databases(),
            busy in prop::collection::hash_set((0..8_u64).prop_map(DbId::new), 0..3),
        ) {
            let busy: Databases = busy
                .into_iter()
                .filter_map(|id| Some((id, local.get(&id)?.clone())))
                .collect();
            let (_, now) = check(&local, &wanted, &busy);
            // Once everything else is gone and nothing is under way, a second plan finds nothing to do but what the
            // first could not.
            let now: Databases = now.into_iter().filter(|(id, _)| wanted.contains_key(id)).collect();
            let (_, settled) = check(&now, &wanted, &HashMap::new());
            let (last, _) = check(&settled, &wanted, &HashMap::new());
            prop_assert_eq!(last.steps, vec![]);
        }
    }
}
