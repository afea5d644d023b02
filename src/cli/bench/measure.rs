//! Rounds in turns, rates and percentiles.

use std::time::{Duration, Instant};

use super::super::playground::Interrupt;
use super::workload::Place;

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Rounds on each side; the median counts.
    pub(crate) rounds: u32,
    /// Time of one round.
    pub(crate) round: Duration,
}

/// Latencies of single operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Percentiles {
    /// Half are faster.
    pub(crate) p50: Duration,
    /// One in a hundred is slower.
    pub(crate) p99: Duration,
    /// The slowest.
    pub(crate) max: Duration,
}

impl Percentiles {
    /// Of at least one latency.
    pub(crate) fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let at = |percent: usize| {
            all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied()
        };
        Some(Self { p50: at(50)?, p99: at(99)?, max: *all.last()? })
    }
}

/// What one side did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Operations per second: the median of the rounds.
    pub(crate) per_second: f64,
    /// Over all rounds.
    pub(crate) latency: Percentiles,
}

/// Runs each place for one round, again and again; the order changes with each round.
///
/// # Errors
/// SQLite failed, or the user interrupts.
pub(super) fn in_turns(
    places: &mut [Place],
    pace: Pace,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Measured>> {
    let mut rates = vec![Vec::new(); places.len()];
    let mut latencies = vec![Vec::new(); places.len()];
    // A round before the first warms caches on all sides and does not count.
    for place in places.iter_mut() {
        one_round(place, pace.round / 4, interrupt)?;
    }
    for round in 0..pace.rounds {
        let mut order: Vec<usize> = (0..places.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let (rate, mut taken) = one_round(&mut places[index], pace.round, interrupt)?;
            rates[index].push(rate);
            latencies[index].append(&mut taken);
        }
    }
    let mut measured = Vec::new();
    for (rates, latencies) in rates.into_iter().zip(latencies) {
        let latency = Percentiles::of(latencies).ok_or_else(|| anyhow::anyhow!("nothing ran"))?;
        measured.push(Measured { per_second: median(rates), latency });
    }
    Ok(measured)
}

/// Operations for a while; the rate and each operation's time.
fn one_round(
    place: &mut Place,
    time: Duration,
    interrupt: &Interrupt,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    interrupt.check()?;
    let mut taken = Vec::new();
    let start = Instant::now();
    let mut before = start;
    while before.duration_since(start) < time {
        place.step()?;
        let now = Instant::now();
        taken.push(now.duration_since(before));
        before = now;
    }
    #[allow(clippy::cast_precision_loss, reason = "a count of operations is far below 2^52")]
    let rate = taken.len() as f64 / start.elapsed().as_secs_f64();
    Ok((rate, taken))
}

/// The middle one.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A rate for people: `12.3 k/s`.
pub(crate) fn per_second(rate: f64) -> String {
    if rate >= 100_000.0 {
        format!("{:.0} k/s", rate / 1000.0)
    } else if rate >= 1000.0 {
        format!("{:.1} k/s", rate / 1000.0)
    } else {
        format!("{rate:.0} /s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let all: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let found = Percentiles::of(all).unwrap();
        assert_eq!(found.p50.as_millis(), 101);
        assert_eq!(found.p99.as_millis(), 199);
        assert_eq!(found.max.as_millis(), 200);
        assert!(Percentiles::of(Vec::new()).is_none());
    }
}
