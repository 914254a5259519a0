use std::fmt;

use serde::{Deserialize, Serialize};

use crate::inspect::Interface;

/// What an import lets a component reach outside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// Requests to other hosts by `wasi:http`.
    OutgoingHttp,
    /// Sockets of its own by `wasi:sockets`, in the network namespace of its pod.
    Sockets,
}

impl fmt::Display for Grant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Grant::OutgoingHttp => "outgoing HTTP requests",
            Grant::Sockets => "TCP and UDP sockets",
        })
    }
}

/// An interface that every node of this version provides to components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provided {
    pub interface: &'static str,
    /// The release track; within a track interfaces only gain functions, so any stable patch version is served.
    pub track: &'static str,
    pub grant: Option<Grant>,
}

const fn core(interface: &'static str, track: &'static str) -> Provided {
    Provided { interface, track, grant: None }
}

const fn granted(interface: &'static str, track: &'static str, grant: Grant) -> Provided {
    Provided { interface, track, grant: Some(grant) }
}

/// The module that WASI 0.1 imports come from.
pub(crate) const PREVIEW1: &str = "wasi_snapshot_preview1";

/// Everything that can be imported.
pub const PROVIDED: &[Provided] = &[
    core("wasi:io/error", "0.2"),
    core("wasi:io/poll", "0.2"),
    core("wasi:io/streams", "0.2"),
    core("wasi:cli/environment", "0.2"),
    core("wasi:cli/exit", "0.2"),
    core("wasi:cli/stdin", "0.2"),
    core("wasi:cli/stdout", "0.2"),
    core("wasi:cli/stderr", "0.2"),
    core("wasi:cli/terminal-input", "0.2"),
    core("wasi:cli/terminal-output", "0.2"),
    core("wasi:cli/terminal-stdin", "0.2"),
    core("wasi:cli/terminal-stdout", "0.2"),
    core("wasi:cli/terminal-stderr", "0.2"),
    core("wasi:clocks/monotonic-clock", "0.2"),
    core("wasi:clocks/wall-clock", "0.2"),
    core("wasi:filesystem/preopens", "0.2"),
    core("wasi:filesystem/types", "0.2"),
    core("wasi:random/random", "0.2"),
    core("wasi:random/insecure", "0.2"),
    core("wasi:random/insecure-seed", "0.2"),
    core("wasi:http/types", "0.2"),
    granted("wasi:http/outgoing-handler", "0.2", Grant::OutgoingHttp),
    granted("wasi:sockets/instance-network", "0.2", Grant::Sockets),
    granted("wasi:sockets/network", "0.2", Grant::Sockets),
    granted("wasi:sockets/ip-name-lookup", "0.2", Grant::Sockets),
    granted("wasi:sockets/tcp", "0.2", Grant::Sockets),
    granted("wasi:sockets/tcp-create-socket", "0.2", Grant::Sockets),
    granted("wasi:sockets/udp", "0.2", Grant::Sockets),
    granted("wasi:sockets/udp-create-socket", "0.2", Grant::Sockets),
    core("wasi:cli/environment", "0.3"),
    core("wasi:cli/exit", "0.3"),
    core("wasi:cli/stdin", "0.3"),
    core("wasi:cli/stdout", "0.3"),
    core("wasi:cli/stderr", "0.3"),
    core("wasi:cli/terminal-input", "0.3"),
    core("wasi:cli/terminal-output", "0.3"),
    core("wasi:cli/terminal-stdin", "0.3"),
    core("wasi:cli/terminal-stdout", "0.3"),
    core("wasi:cli/terminal-stderr", "0.3"),
    core("wasi:cli/types", "0.3"),
    core("wasi:clocks/monotonic-clock", "0.3"),
    core("wasi:clocks/system-clock", "0.3"),
    core("wasi:clocks/types", "0.3"),
    core("wasi:filesystem/preopens", "0.3"),
    core("wasi:filesystem/types", "0.3"),
    core("wasi:random/random", "0.3"),
    core("wasi:random/insecure", "0.3"),
    core("wasi:random/insecure-seed", "0.3"),
    core("wasi:http/types", "0.3"),
    granted("wasi:http/client", "0.3", Grant::OutgoingHttp),
    granted("wasi:sockets/ip-name-lookup", "0.3", Grant::Sockets),
    granted("wasi:sockets/types", "0.3", Grant::Sockets),
    core(PREVIEW1, ""),
];

/// The functions of WASI 0.1; a core module names each function that it needs.
pub(crate) const PREVIEW1_FUNCTIONS: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "proc_raise",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// The row that serves an interface, if any does.
pub(crate) fn provider(interface: &Interface) -> Option<&'static Provided> {
    PROVIDED.iter().find(|row| row.interface == interface.name() && row.track == interface.track())
}

/// The interfaces that nobody provides, in the order given.
pub fn refuse<'a>(imports: impl IntoIterator<Item = &'a Interface>) -> Vec<Interface> {
    imports.into_iter().filter(|interface| provider(interface).is_none()).cloned().collect()
}
