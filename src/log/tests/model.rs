//! The log does what a vector does.

use proptest::prelude::*;

use super::{ALL, Record, SMALL, die, read_all, record, tempdir};
use crate::log::{Log, Read};
use crate::types::{Pos, Txid};

#[derive(Clone, Debug)]
enum Step {
    Append { bytes: usize, salt: u64 },
    Sync,
    Retract { count: usize },
    Trim { count: usize },
    Reset,
    Roll,
    Reopen { in_order: bool },
    Read { from: usize, bytes_max: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (prop_oneof![0..300_usize, 0..3000_usize, 7000..20_000_usize], any::<u64>())
            .prop_map(|(bytes, salt)| Step::Append { bytes, salt }),
        3 => Just(Step::Sync),
        2 => (0..6_usize).prop_map(|count| Step::Retract { count }),
        1 => (0..40_usize).prop_map(|count| Step::Retract { count }),
        2 => (0..20_usize).prop_map(|count| Step::Trim { count }),
        1 => Just(Step::Reset),
        1 => Just(Step::Roll),
        2 => any::<bool>().prop_map(|in_order| Step::Reopen { in_order }),
        4 => (0..50_usize, 0..9000_usize).prop_map(|(from, bytes_max)| Step::Read { from, bytes_max }),
    ]
}

/// What the log should be.
struct Model {
    base: Pos,
    records: Vec<Record>,
    trimmed_to: Option<Txid>,
}

impl Model {
    fn position_after(&self, count: usize) -> Pos {
        count.checked_sub(1).map_or(self.base, |last| self.records[last].0.pos())
    }

    fn position(&self) -> Pos {
        self.position_after(self.records.len())
    }
}

fn run(steps: &[Step]) {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let mut reader = log.reader();
    let mut model = Model { base: Pos::ZERO, records: Vec::new(), trimmed_to: None };
    for step in steps {
        match *step {
            Step::Append { bytes, salt } => {
                let record = record(model.position(), bytes, salt);
                log.append(&record.0, &record.1).unwrap();
                model.records.push(record);
            }
            Step::Sync => assert_eq!(log.syncer().sync().unwrap(), model.position()),
            Step::Retract { count } => {
                let keep = model.records.len().saturating_sub(count);
                log.retract(model.position_after(keep)).unwrap();
                model.records.truncate(keep);
            }
            Step::Trim { count } => {
                let Some(last) = model.records.get(count) else { continue };
                model.trimmed_to = Some(last.0.max);
                log.trim(last.0.max).unwrap();
                let base = log.base();
                assert!(base.txid <= Some(last.0.max));
                while model.base != base {
                    model.base = model.records.remove(0).0.pos();
                }
            }
            Step::Reset => {
                let base = model.position();
                log.reset(base).unwrap();
                model = Model { base, records: Vec::new(), trimmed_to: None };
            }
            Step::Roll => log.roll().unwrap(),
            Step::Reopen { in_order } => {
                if in_order {
                    drop(log);
                } else {
                    die(log);
                }
                log = Log::open(dir.path(), SMALL).unwrap();
                assert_eq!(log.cut(), None);
                reader = log.reader();
            }
            Step::Read { from, bytes_max } => {
                let from = from.min(model.records.len());
                let Read::Records(read) =
                    reader.read(model.position_after(from), bytes_max).unwrap()
                else {
                    panic!("gone")
                };
                assert_eq!(read, model.records[from..from + read.len()]);
                assert!(!read.is_empty() || from == model.records.len());
                let total: usize = read.iter().map(|(_, ltx)| ltx.len()).sum();
                assert!(read.len() <= 1 || total <= bytes_max);
            }
        }
        assert_eq!(log.position(), model.position());
        assert_eq!(log.base(), model.base);
        assert_eq!(log.first(), model.records.first().map(|r| r.0));
        if model.records.is_empty() {
            assert!(log.last().is_none_or(|last| last.pos() == model.base));
        } else {
            assert_eq!(log.last(), model.records.last().map(|r| r.0));
        }
        assert!(log.syncer().durable().txid <= log.position().txid);
        let sizes = super::segments(dir.path());
        let sizes = sizes.iter().map(|p| p.metadata().unwrap().len());
        assert_eq!(log.bytes(), sizes.sum::<u64>());
    }
    assert_eq!(read_all(&log.reader(), model.base, ALL).unwrap(), model.records);
    for record in &model.records {
        assert_eq!(reader.info_at(record.0.max).unwrap(), Some(record.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn the_log_does_what_a_vector_does(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps);
    }
}
