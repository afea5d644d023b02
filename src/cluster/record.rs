//! The record in the register: who holds the lease.
//!
//! JSON, so that a person can read it with the service's own tools. Unknown fields are ignored, an unknown
//! format is refused: a node never overwrites what it does not understand.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, Epoch, NodeId};

/// The format that is written.
const FORMAT: u32 = 1;

/// Names one write of the register, as the register counts: equal versions, equal content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version(pub String);

/// What a register held, and under which version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned {
    /// Names the content.
    pub version: Version,
    /// The record, if it could be read.
    pub record: Result<Record, RecordError>,
}

/// A node as the others know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its persistent id.
    pub id: NodeId,
    /// Drawn at each start: a restarted or cloned node is not the one that took the lease.
    pub incarnation: u64,
    /// Its name in the configuration.
    pub name: String,
    /// Where it serves replicas.
    pub url: String,
}

/// Why a record was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There was no record.
    First,
    /// The holder before did not renew in time.
    Expired,
    /// The lease had been given up, for this node or for anybody.
    Vacant,
    /// The holder goes on.
    Renewed,
    /// The holder stops, or hands over.
    GivenUp,
}

/// The content of the register.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Whose lease it is.
    pub cluster: ClusterId,
    /// Counts changes of the holder.
    pub epoch: Epoch,
    /// Nobody, after it was given up.
    pub holder: Option<Holder>,
    /// How long after a write the holder believes it.
    ttl_ms: u64,
    /// For whom it was given up; others wait before they claim.
    #[serde(default)]
    pub next: Option<NodeId>,
    /// Why it was written.
    pub reason: Reason,
    /// Drawn for each write: a writer whose answer was lost can tell its own.
    pub serial: u64,
}

/// Why a record could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// It is of another version of this program.
    #[error(
        "the lease record has format {found}, this program reads format {FORMAT}; run one version on all nodes"
    )]
    Format {
        /// What it says.
        found: u32,
    },
    /// It is no record.
    #[error(
        "the lease record cannot be read ({0}); remove it from the register while no node is primary"
    )]
    Garbage(String),
    /// Another cluster uses the register.
    #[error(
        "the register holds the lease of cluster {found}, this node belongs to cluster {own}; give each cluster a key of its own"
    )]
    OtherCluster {
        /// Whose lease it is.
        found: ClusterId,
        /// This node's.
        own: ClusterId,
    },
}

impl Record {
    /// A record that is to be written.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        epoch: Epoch,
        ttl: Duration,
        reason: Reason,
        serial: u64,
    ) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Self { format: FORMAT, cluster, epoch, holder: None, ttl_ms, next: None, reason, serial }
    }

    /// How long after a write the holder believes it.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    /// The bytes for a register.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("BUG: plain data becomes JSON")
    }

    /// Reads what a register holds.
    ///
    /// # Errors
    /// [`RecordError`]; such a record must not be overwritten.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let garbage = |error: serde_json::Error| RecordError::Garbage(error.to_string());
        let Format { format: found } = serde_json::from_slice(bytes).map_err(garbage)?;
        if found != FORMAT {
            return Err(RecordError::Format { found });
        }
        serde_json::from_slice(bytes).map_err(garbage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let ttl = Duration::from_secs(2);
        Record::new(ClusterId::new(7), Epoch::new(3), ttl, Reason::Expired, 99)
    }

    #[test]
    fn a_record_survives_its_bytes() {
        let holder = Holder {
            id: NodeId::new(1),
            incarnation: 2,
            name: "a".to_owned(),
            url: "http://a:7400".to_owned(),
        };
        let record = Record { holder: Some(holder), next: Some(NodeId::new(5)), ..record() };
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let later = br#"{"format":2,"who":"knows"}"#;
        assert_eq!(Record::decode(later), Err(RecordError::Format { found: 2 }));
        for bytes in [&b""[..], b"null", b"{\"format\":1}", b"\xff\xfe", b"{\"format\":-1}"] {
            assert!(matches!(Record::decode(bytes), Err(RecordError::Garbage(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_field_of_a_later_version_does_no_harm() {
        let mut text = String::from_utf8(record().encode()).unwrap();
        text.insert_str(1, "\"colour\":\"red\",");
        assert_eq!(Record::decode(text.as_bytes()), Ok(record()));
    }
}
