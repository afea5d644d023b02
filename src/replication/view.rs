//! Which databases a follower sees: its filter, and the catalog as it was told.
//!
//! Pure. The primary keeps one `View` per stream and translates the store's changes through it: a rename
//! out of the filter is a drop for the follower, one into it a new database.

use std::collections::HashMap;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::store::CatalogChange;
use crate::types::{DbId, DbName};

/// Why a filter is not acceptable.
#[derive(Debug, thiserror::Error)]
#[error("the filter {glob:?} is no glob: {source}")]
pub struct FilterError {
    glob: String,
    #[source]
    source: globset::Error,
}

/// The globs of a follower: a database is wanted if one matches, or if there are none.
///
/// `*` stays within a directory, `**` does not.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    globs: Option<GlobSet>,
}

impl Filter {
    /// Compiles globs.
    ///
    /// # Errors
    /// [`FilterError`] names the first that is none.
    pub fn new(globs: &[String]) -> Result<Self, FilterError> {
        if globs.is_empty() {
            return Ok(Self::default());
        }
        let mut set = GlobSetBuilder::new();
        for glob in globs {
            let compiled = GlobBuilder::new(glob)
                .literal_separator(true)
                .build()
                .map_err(|source| FilterError { glob: glob.clone(), source })?;
            set.add(compiled);
        }
        let globs = set.build().map_err(|source| FilterError { glob: globs.join(", "), source })?;
        Ok(Self { globs: Some(globs) })
    }

    /// Whether a database is wanted.
    #[must_use]
    pub fn wants(&self, name: &DbName) -> bool {
        self.globs.as_ref().is_none_or(|globs| globs.is_match(name.as_path()))
    }
}

/// The databases of one follower, as it knows them.
#[derive(Debug)]
pub(crate) struct View {
    filter: Filter,
    names: HashMap<DbId, DbName>,
}

impl View {
    pub(crate) fn new(filter: Filter) -> Self {
        Self { filter, names: HashMap::new() }
    }

    /// Translates one change of the store; `None` if the follower need not know.
    pub(crate) fn apply(&mut self, change: CatalogChange) -> Option<CatalogChange> {
        match change {
            CatalogChange::Named { id, name } if self.filter.wants(&name) => {
                if self.names.get(&id) == Some(&name) {
                    return None;
                }
                self.names.insert(id, name.clone());
                Some(CatalogChange::Named { id, name })
            }
            CatalogChange::Named { id, .. } | CatalogChange::Dropped { id } => {
                self.names.remove(&id).map(|_| CatalogChange::Dropped { id })
            }
        }
    }

    /// Takes the whole catalog of the store; returns what changed, removals first, so that a name is
    /// free before another database takes it.
    pub(crate) fn replace(&mut self, catalog: &HashMap<DbId, DbName>) -> Vec<CatalogChange> {
        let gone: Vec<DbId> =
            self.names.keys().filter(|id| !catalog.contains_key(id)).copied().collect();
        let dropped = gone.into_iter().map(|id| CatalogChange::Dropped { id });
        let named =
            catalog.iter().map(|(id, name)| CatalogChange::Named { id: *id, name: name.clone() });
        dropped.chain(named).collect::<Vec<_>>().into_iter().filter_map(|c| self.apply(c)).collect()
    }

    pub(crate) fn contains(&self, id: DbId) -> bool {
        self.names.contains_key(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DbId, &DbName)> {
        self.names.iter().map(|(id, name)| (*id, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DbName {
        DbName::new(text.as_bytes()).unwrap()
    }

    fn names(entries: &[(u64, &str)]) -> HashMap<DbId, DbName> {
        entries.iter().map(|(id, text)| (DbId::new(*id), name(text))).collect()
    }

    #[test]
    fn a_star_stays_within_a_directory() {
        let check = |globs: &[&str], text: &str, expected: bool| {
            let globs: Vec<String> = globs.iter().map(|g| (*g).to_owned()).collect();
            assert_eq!(Filter::new(&globs).unwrap().wants(&name(text)), expected, "{text}");
        };
        check(&[], "a/b.db", true);
        check(&["*.db"], "b.db", true);
        check(&["*.db"], "a/b.db", false);
        check(&["**/*.db"], "a/b.db", true);
        check(&["a/**", "x"], "a/c/d", true);
        check(&["a/**", "x"], "x", true);
        assert!(Filter::new(&["[".to_owned()]).is_err());
    }

    #[test]
    fn a_rename_out_of_the_filter_is_a_drop() {
        let mut view = View::new(Filter::new(&["*.db".to_owned()]).unwrap());
        let id = DbId::new(1);
        let named = |text: &str| CatalogChange::Named { id, name: name(text) };
        assert_eq!(view.apply(named("x.tmp")), None);
        assert_eq!(view.apply(named("x.db")), Some(named("x.db")));
        assert_eq!(view.apply(named("x.db")), None);
        assert_eq!(view.apply(named("x.old")), Some(CatalogChange::Dropped { id }));
        assert_eq!(view.apply(CatalogChange::Dropped { id }), None);
    }

    #[test]
    fn a_lost_catalog_is_replaced_removals_first() {
        let mut view = View::new(Filter::default());
        view.replace(&names(&[(1, "a"), (2, "b")]));
        let changes = view.replace(&names(&[(2, "a")]));
        assert_eq!(
            changes,
            [
                CatalogChange::Dropped { id: DbId::new(1) },
                CatalogChange::Named { id: DbId::new(2), name: name("a") },
            ]
        );
        assert!(!view.contains(DbId::new(1)));
    }
}
