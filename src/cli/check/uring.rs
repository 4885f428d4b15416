//! What the kernel's io_uring can do here, and whether a ring of an edge can be had.

use std::fmt;

use io_uring::{IoUring, Probe, opcode};

use crate::ring::kernel::{KernelRing, RingFault, RingOptions};

/// Operations that the edge submits, by their names in the manual.
const OPERATIONS: [(&str, u8); 8] = [
    ("accept", opcode::Accept::CODE),
    ("connect", opcode::Connect::CODE),
    ("recv", opcode::Recv::CODE),
    ("send", opcode::Send::CODE),
    ("poll_add", opcode::PollAdd::CODE),
    ("async_cancel", opcode::AsyncCancel::CODE),
    ("close", opcode::Close::CODE),
    ("uring_cmd", opcode::UringCmd16::CODE),
];

/// What was found. Asking changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uring {
    /// Of those that the edge submits.
    pub operations: Vec<&'static str>,
    pub missing: Vec<&'static str>,
    pub features: Vec<&'static str>,
    /// Slots of the socket table that one ring was given.
    pub sockets: Option<u32>,
    /// Why no ring of an edge can be had, with what to do.
    pub obstacle: Option<String>,
}

/// Makes rings and lets them go again.
pub fn ask() -> Uring {
    let mut found = Uring::default();
    if let Ok(ring) = IoUring::new(8) {
        let mut probe = Probe::new();
        if ring.submitter().register_probe(&mut probe).is_ok() {
            for (name, code) in OPERATIONS {
                match probe.is_supported(code) {
                    true => found.operations.push(name),
                    false => found.missing.push(name),
                }
            }
        }
        let parameters = ring.params();
        let features = [
            ("nodrop", parameters.is_feature_nodrop()),
            ("fast_poll", parameters.is_feature_fast_poll()),
            ("ext_arg", parameters.is_feature_ext_arg()),
            ("min_timeout", parameters.is_feature_min_timeout()),
            ("recvsend_bundle", parameters.is_feature_recvsend_bundle()),
            ("no_iowait", parameters.is_feature_no_iowait()),
        ];
        found
            .features
            .extend(features.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name));
    }
    match edge_ring() {
        Ok(ring) => found.sockets = Some(ring.sockets_max()),
        Err(fault) => found.obstacle = Some(fault.to_string()),
    }
    found
}

/// As each shard makes it.
fn edge_ring() -> Result<KernelRing, RingFault> {
    KernelRing::new(RingOptions { sockets: 1 << 20, ..RingOptions::default() })
}

impl fmt::Display for Uring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "operations {}", self.operations.join(" "))?;
        if !self.missing.is_empty() {
            write!(formatter, ", without {}", self.missing.join(" "))?;
        }
        write!(formatter, "; features {}", self.features.join(" "))
    }
}
