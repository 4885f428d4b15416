//! Why a process ended, as one line and an exit code.

use std::io::{self, ErrorKind};

use crate::ring::kernel::RingFault;
use crate::store::StoreFault;
use crate::store::repair::NeedsConsent;

/// The process ended by a fault of its own or of the machine.
pub const CODE_FAULT: u8 = 1;
/// It cannot start like this; trying again without a change gives the same.
pub const CODE_USAGE: u8 = 2;

/// `repair` would lose something and was not told to.
pub const CODE_CONSENT: u8 = 3;

/// Whoever started the process has to change something first.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The end of a process as the outside sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    /// One line, without the name of the process.
    pub message: String,
}

impl Failure {
    /// Sorts an error by its chain: a [`Usage`], a host without io_uring, or an I/O error that
    /// names an address or directory which is in use or forbidden, is code 2; all else is a fault.
    pub fn of(error: &anyhow::Error) -> Failure {
        let by_usage = error.chain().any(|cause| {
            cause.is::<Usage>()
                || cause.downcast_ref().is_some_and(is_host)
                || cause.downcast_ref().is_some_and(is_usage)
                || matches!(cause.downcast_ref(), Some(StoreFault::Locked { .. }))
        });
        let code = match error.downcast_ref::<NeedsConsent>() {
            Some(_) => CODE_CONSENT,
            None if by_usage => CODE_USAGE,
            None => CODE_FAULT,
        };
        Failure { code, message: one_line(error) }
    }
}

fn is_host(fault: &RingFault) -> bool {
    matches!(
        fault,
        RingFault::Forbidden { .. } | RingFault::Missing { .. } | RingFault::KernelTooOld { .. }
    )
}

fn is_usage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AddrInUse
            | ErrorKind::AddrNotAvailable
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::ResourceBusy
            | ErrorKind::Unsupported
    )
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_found_under_its_context() {
        let error = anyhow::Error::new(Usage("no such flag".to_owned())).context("edge");
        let failure = Failure::of(&error);
        assert_eq!(failure.code, CODE_USAGE);
        assert_eq!(failure.message, "edge: no such flag");
    }

    #[test]
    fn what_the_caller_can_change_is_usage_and_the_rest_is_a_fault() {
        let code = |kind: ErrorKind| Failure::of(&io::Error::from(kind).into()).code;
        assert_eq!(code(ErrorKind::AddrInUse), CODE_USAGE);
        assert_eq!(code(ErrorKind::PermissionDenied), CODE_USAGE);
        assert_eq!(code(ErrorKind::ResourceBusy), CODE_USAGE);
        assert_eq!(code(ErrorKind::InvalidData), CODE_FAULT);
        let kernel = "5.4.0".to_owned();
        let host = anyhow::Error::from(RingFault::Missing { kernel }).context("shard 0");
        assert_eq!(Failure::of(&host).code, CODE_USAGE);
    }
}
