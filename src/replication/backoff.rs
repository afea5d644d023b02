//! Pauses between attempts. Pure: randomness comes from outside.

use std::time::Duration;

/// `min`, doubled `failures` times, at most `max`.
pub(crate) fn exponential(min: Duration, max: Duration, failures: u32) -> Duration {
    min.checked_mul(1_u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX))
        .map_or(max, |d| d.min(max))
}

/// The pause with jitter: between half of it and all of it. `random` is in [0, 1).
pub(crate) fn jittered(pause: Duration, random: f64) -> Duration {
    pause.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let (min, max) = (Duration::from_millis(20), Duration::from_secs(1));
        let check = |failures, ms| {
            assert_eq!(exponential(min, max, failures), Duration::from_millis(ms), "{failures}");
        };
        check(0, 20);
        check(1, 40);
        check(5, 640);
        check(6, 1000);
        check(u32::MAX, 1000);
        assert_eq!(jittered(max, 0.0), max / 2);
        assert_eq!(jittered(max, 1.0), max);
    }
}
