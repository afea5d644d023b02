//! Results as a table for people and as JSON.

use std::time::Duration;

use super::machine::Machine;
use super::measure::{Measured, Percentiles, per_second};

/// Everything one run found.
#[derive(serde::Serialize, Debug)]
pub(super) struct Report {
    machine: Machine,
    replicas: String,
    pub(super) rows: Vec<Row>,
}

/// One line: a workload and what came out. Absent figures do not apply.
#[derive(serde::Serialize, Debug, Default)]
pub(super) struct Row {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weir: Option<f64>,
    /// Weir's figure by plain SQLite's.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    /// The replica's figure by plain SQLite's.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weir_latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// Microseconds.
#[derive(serde::Serialize, Debug, Clone, Copy)]
struct Latency {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl From<Percentiles> for Latency {
    fn from(found: Percentiles) -> Self {
        Self { p50_us: us(found.p50), p99_us: us(found.p99), max_us: us(found.max) }
    }
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Report {
    pub(super) fn new(machine: Machine, replicas: String) -> Self {
        Self { machine, replicas, rows: Vec::new() }
    }

    /// What is printed before the first row.
    pub(super) fn head(&self) -> String {
        let m = &self.machine;
        let mut text = format!(
            "weir {} ({} build), SQLite {}, Linux {}, {}, {} cores, {} GiB, {}\nreplicas attached: {}\n",
            m.weir,
            m.build,
            m.sqlite,
            m.kernel,
            m.cpu,
            m.cores,
            m.memory_gib,
            m.file_system,
            self.replicas
        );
        if m.build == "debug" {
            text += "A debug build: these figures say nothing. Use cargo run --release.\n";
        }
        text + &format!(
            "\n{:<40}{:>10}{:>10}{:>7}  {:>22}  {:>22}\n",
            "", "plain", "weir", "ratio", "plain p50 / p99 µs", "weir p50 / p99 µs"
        )
    }

    /// Everything as JSON.
    ///
    /// # Errors
    /// A figure is not a number.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

impl Row {
    pub(super) fn rates(
        name: &str,
        plain: &Measured,
        weir: &Measured,
        replica: Option<&Measured>,
    ) -> Self {
        Self {
            replica_ratio: replica.map(|replica| replica.per_second / plain.per_second),
            plain_latency: Some(plain.latency.into()),
            weir_latency: Some(weir.latency.into()),
            ..Self::ratio(name.to_owned(), "/s", plain.per_second, weir.per_second)
        }
    }

    pub(super) fn ratio(name: String, unit: &'static str, plain: f64, weir: f64) -> Self {
        let (ratio, unit) = (Some(weir / plain), Some(unit));
        Self { name, unit, plain: Some(plain), weir: Some(weir), ratio, ..Self::default() }
    }

    /// The same operation on the mount in a small and in a large database.
    pub(super) fn cost(name: String, small: Duration, large: Duration) -> Self {
        let (small, large) = (us(small), us(large));
        Self {
            name,
            unit: Some("µs p50, small and large"),
            plain: Some(small),
            weir: Some(large),
            ratio: Some(large / small),
            ..Self::default()
        }
    }

    pub(super) fn lag(name: &str, found: Percentiles) -> Self {
        Self { name: name.to_owned(), weir_latency: Some(found.into()), ..Self::default() }
    }

    pub(super) fn memory(name: String, bytes: u64) -> Self {
        Self { name, bytes: Some(bytes), ..Self::default() }
    }

    /// The row of the table.
    pub(super) fn line(&self) -> String {
        let figure = |value: Option<f64>| match (value, self.unit) {
            (Some(value), Some("/s")) => per_second(value),
            (Some(value), Some("MB/s")) => format!("{value:.0} MB/s"),
            (Some(value), _) => format!("{value:.1} µs"),
            (None, _) => String::new(),
        };
        let ratio = self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let latency = |found: Option<Latency>| {
            found.map_or_else(String::new, |f| format!("{:.1} / {:.1}", f.p50_us, f.p99_us))
        };
        let mut line = format!(
            "{:<40}{:>10}{:>10}{:>7}  {:>22}  {:>22}\n",
            self.name,
            figure(self.plain),
            figure(self.weir),
            ratio,
            latency(self.plain_latency),
            latency(self.weir_latency)
        );
        if let Some(ratio) = self.replica_ratio {
            line += &format!("{:<40}{:>27.2}\n", format!("  {} on the replica", self.name), ratio);
        }
        if let Some(bytes) = self.bytes {
            #[allow(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
            let mebibytes = bytes as f64 / f64::from(1 << 20);
            line = format!("{:<40}{mebibytes:>16.1} MiB\n", self.name);
        }
        line
    }
}
