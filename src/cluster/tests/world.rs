//! The simulated world: events in the order of real time, which no node knows.

use core::time::Duration;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Flaw, TTL};

use crate::cluster::{
    Action, Elector, Event, Holder, Options, Outcome, Record, Unreachable, Version, Versioned,
};
use crate::types::{ClusterId, Epoch, NodeId};

const NODES: usize = 3;
/// Real time in microseconds.
type Micros = u64;
const SECOND: Micros = 1_000_000;
/// Faults happen until then.
const STORM_END: Micros = 40 * SECOND;
const END: Micros = 60 * SECOND;
/// How long a node waits for the register.
const TIMEOUT: Micros = 600_000;

#[derive(Clone, Debug)]
enum Request {
    Read,
    Swap(Option<Version>, Vec<u8>),
}

#[derive(Debug)]
enum What {
    /// Only the newest of a node counts.
    Wake {
        node: usize,
        number: u64,
    },
    /// A request reaches the register; `call` is what the node waits for, `None` if the answer is lost.
    Arrive {
        node: usize,
        call: u64,
        request: Request,
        loses_answer: bool,
    },
    Answer {
        node: usize,
        call: u64,
        event: Event,
    },
    GiveUp {
        node: usize,
    },
    Pause {
        node: usize,
        until: Micros,
    },
    Crash {
        node: usize,
    },
    Cut {
        node: usize,
        is_cut: bool,
    },
}

struct Node {
    elector: Elector,
    /// Its clock: `offset + real * rate`.
    rate: f64,
    offset: f64,
    paused_until: Micros,
    is_cut: bool,
    /// The call that is under way.
    call: Option<u64>,
    holds: Option<Epoch>,
    incarnation: u64,
    /// Of the newest [`What::Wake`].
    wake: u64,
}

impl Node {
    fn clock(&self, real: Micros) -> Duration {
        Duration::from_secs_f64(self.offset + real as f64 * self.rate / 1e6)
    }
}

struct World {
    dice: StdRng,
    now: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64)>>,
    events: BTreeMap<u64, What>,
    counter: u64,
    nodes: Vec<Node>,
    register: Option<(u64, Vec<u8>)>,
    reigns: BTreeMap<u64, u64>,
    incarnations: u64,
    flaw: Option<Flaw>,
}

/// Plays one history; what went wrong, if anything.
pub(super) fn run(seed: u64, flaw: Option<Flaw>) -> Result<(), String> {
    let mut world = World {
        dice: StdRng::seed_from_u64(seed),
        now: 0,
        queue: BinaryHeap::new(),
        events: BTreeMap::new(),
        counter: 0,
        nodes: Vec::new(),
        register: None,
        reigns: BTreeMap::new(),
        incarnations: 0,
        flaw,
    };
    for id in 0..NODES {
        let node = world.node(id);
        world.nodes.push(node);
        world.wake(id, 0);
    }
    world.plan_faults();
    while let Some(Reverse((time, number))) = world.queue.pop() {
        if time > END {
            break;
        }
        world.now = time;
        let what = world.events.remove(&number).expect("BUG: planned once");
        world.happens(what)?;
        world.check()?;
    }
    let holders = world.nodes.iter().filter(|node| node.holds(world.now).is_some()).count();
    if holders == 1 { Ok(()) } else { Err(format!("{holders} holders after a quiet time")) }
}

impl Node {
    fn holds(&self, real: Micros) -> Option<Epoch> {
        self.elector.holds(self.clock(real))
    }
}

impl World {
    fn node(&mut self, id: usize) -> Node {
        self.incarnations += 1;
        let me = Holder {
            id: NodeId::new(id as u64),
            incarnation: self.incarnations << 32,
            name: String::new(),
            url: String::new(),
        };
        let claim_delay = Duration::from_millis(self.dice.random_range(0..100));
        let options = Options { ttl: TTL, is_candidate: true, claim_delay };
        let mut elector = Elector::new(ClusterId::new(1), me, options, Epoch::ZERO);
        elector.flaw = self.flaw;
        Node {
            elector,
            rate: self.dice.random_range(0.96..1.04),
            offset: self.dice.random_range(0.0..1e6),
            paused_until: 0,
            is_cut: false,
            call: None,
            holds: None,
            incarnation: self.incarnations,
            wake: 0,
        }
    }

    fn plan(&mut self, time: Micros, what: What) {
        self.counter += 1;
        self.events.insert(self.counter, what);
        self.queue.push(Reverse((time, self.counter)));
    }

    fn wake(&mut self, node: usize, time: Micros) {
        let number = self.counter + 1;
        self.nodes[node].wake = number;
        self.plan(time, What::Wake { node, number });
    }

    fn plan_faults(&mut self) {
        for _ in 0..self.dice.random_range(0..25) {
            let node = self.dice.random_range(0..NODES);
            let time = self.dice.random_range(0..STORM_END);
            let until = (time + self.dice.random_range(SECOND / 10..6 * SECOND)).min(STORM_END);
            match self.dice.random_range(0..4) {
                0 => self.plan(time, What::Pause { node, until }),
                1 => self.plan(time, What::Crash { node }),
                2 => self.plan(time, What::GiveUp { node }),
                _ => {
                    self.plan(time, What::Cut { node, is_cut: true });
                    self.plan(until, What::Cut { node, is_cut: false });
                }
            }
        }
    }

    /// Time on the way to or from the register.
    fn delay(&mut self) -> Micros {
        if self.now < STORM_END && self.dice.random_ratio(1, 4) {
            let most = if self.dice.random_ratio(1, 4) { 4 * SECOND } else { TIMEOUT };
            return self.dice.random_range(0..most);
        }
        self.dice.random_range(100..20_000)
    }

    fn is_lost(&mut self, node: usize) -> bool {
        self.nodes[node].is_cut || (self.now < STORM_END && self.dice.random_ratio(1, 20))
    }

    fn happens(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Pause { node, until } => {
                self.nodes[node].paused_until = self.nodes[node].paused_until.max(until);
                Ok(())
            }
            What::Cut { node, is_cut } => {
                self.nodes[node].is_cut = is_cut;
                Ok(())
            }
            What::Crash { node } => {
                self.nodes[node] = self.node(node);
                self.wake(node, self.now);
                Ok(())
            }
            What::Arrive { node, call, request, loses_answer } => {
                let event = self.serve(request);
                if !loses_answer {
                    let time = self.now + self.delay();
                    self.plan(time, What::Answer { node, call, event });
                }
                Ok(())
            }
            What::Wake { node, number } if self.nodes[node].wake == number => {
                self.tell(node, What::Wake { node, number }, Event::Tick)
            }
            What::Wake { .. } => Ok(()),
            What::GiveUp { node } => {
                let next = self.dice.random_range(0..NODES as u64 + 1);
                let next = (next < NODES as u64).then(|| NodeId::new(next));
                self.tell(node, What::GiveUp { node }, Event::GiveUp { next })
            }
            What::Answer { node, call, event } => {
                if self.nodes[node].call != Some(call) {
                    // It has timed out, or the node that asked has crashed.
                    return Ok(());
                }
                let again = What::Answer { node, call, event: event.clone() };
                if self.nodes[node].paused_until <= self.now {
                    self.nodes[node].call = None;
                }
                self.tell(node, again, event)
            }
        }
    }

    /// A paused node hears of it later.
    fn tell(&mut self, node: usize, what: What, event: Event) -> Result<(), String> {
        let paused_until = self.nodes[node].paused_until;
        if self.now < paused_until {
            self.plan(paused_until, what);
            return Ok(());
        }
        let clock = self.nodes[node].clock(self.now);
        let actions = self.nodes[node].elector.step(clock, event);
        for action in actions {
            self.carry_out(node, action)?;
        }
        let here = &self.nodes[node];
        let wait = here.elector.wake_at().saturating_sub(clock).min(TTL).div_f64(here.rate);
        let wait = Micros::try_from(wait.as_micros()).unwrap_or(SECOND).saturating_add(10);
        self.wake(node, self.now + wait);
        Ok(())
    }

    fn carry_out(&mut self, node: usize, action: Action) -> Result<(), String> {
        let request = match action {
            Action::Read => Request::Read,
            Action::Swap { expected, record } => Request::Swap(expected, record.encode()),
            Action::Claimed { epoch } => {
                let incarnation = self.nodes[node].incarnation;
                if let Some(other) = self.reigns.insert(epoch.get(), incarnation)
                    && other != incarnation
                {
                    return Err(format!("two holders of epoch {epoch}"));
                }
                if self.reigns.keys().next_back() != Some(&epoch.get()) {
                    return Err(format!("epoch {epoch} comes after a higher one"));
                }
                self.nodes[node].holds = Some(epoch);
                return Ok(());
            }
            Action::Lost { epoch, .. } => {
                if self.nodes[node].holds.take() != Some(epoch) {
                    return Err(format!("node {node} loses epoch {epoch}, which it did not hold"));
                }
                return Ok(());
            }
            Action::Follow { .. } => return Ok(()),
        };
        if self.nodes[node].call.is_some() {
            return Err(format!("node {node} asks twice at once"));
        }
        self.counter += 1;
        let call = self.counter;
        let is_swap = matches!(request, Request::Swap(..));
        self.nodes[node].call = Some(call);
        if !self.is_lost(node) {
            let (time, loses_answer) = (self.now + self.delay(), self.is_lost(node));
            self.plan(time, What::Arrive { node, call, request, loses_answer });
        }
        let timeout =
            if is_swap { Event::Swapped(Outcome::Unknown) } else { Event::Read(Err(Unreachable)) };
        self.plan(self.now + TIMEOUT, What::Answer { node, call, event: timeout });
        Ok(())
    }

    /// The register does what it is asked.
    fn serve(&mut self, request: Request) -> Event {
        let version = |number: u64| Version(number.to_string());
        match request {
            Request::Read => Event::Read(Ok(self.register.as_ref().map(|(number, bytes)| {
                Versioned { version: version(*number), record: Record::decode(bytes) }
            }))),
            Request::Swap(expected, bytes) => {
                let now = self.register.as_ref().map(|(number, _)| version(*number));
                if now != expected {
                    return Event::Swapped(Outcome::Lost);
                }
                let number = self.register.as_ref().map_or(1, |(number, _)| number + 1);
                self.register = Some((number, bytes));
                Event::Swapped(Outcome::Won(version(number)))
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let holders: Vec<_> = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(id, node)| Some((id, node.holds(self.now)?)))
            .collect();
        if holders.len() > 1 {
            return Err(format!("at {} us several nodes hold the lease: {holders:?}", self.now));
        }
        Ok(())
    }
}
