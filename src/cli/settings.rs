//! What each subcommand can be told, by flag, environment or file, and how that becomes options.
//!
//! A value that was not given anywhere is `None` until the very end, so that the layers can be
//! laid over each other: clap puts flags over the environment, [`EdgeSettings::over`] and its like
//! put both over the file.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::failure::Usage;
use super::identity::IdentitySettings;
use super::up::UpOptions;
use crate::admin::AdminOptions;
use crate::edge::admission::AdmissionOptions;
use crate::edge::echo::EchoOptions;
use crate::edge::ledger::MemoryBudget;
use crate::edge::options::{EdgeOptions, SHARD_COUNT_MAX};
use crate::edge::tiers::Tiers;
use crate::ring::kernel::Descriptors;
use crate::sequencer::dead_letters::AGE_MS_DEFAULT;
use crate::sequencer::limits::{
    CHANNEL_PUSHES_DEFAULT, GROUPS_PER_USER_DEFAULT, LimitOptions, Rate,
};
use crate::sequencer::options::SequencerOptions;
use crate::store::options::StoreOptions;
use crate::store::repair::RepairOptions;

const HEARTBEAT_MS_DEFAULT: u32 = 30_000;
/// What a provider gives one household, or less.
const IPV6_PREFIX_DEFAULT: u8 = 64;
/// The rest is for the kernel, and for what runs beside.
const MEMORY_BUDGET_DEFAULT: &str = "75%";
/// Any free port, for nobody but this machine.
const ANY_LOOPBACK: Endpoint = Endpoint(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
/// A secret that is shorter can be guessed.
const SECRET_SIZE_MIN: usize = 32;

/// An address and port. A name is looked up once, when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint(pub SocketAddr);

#[derive(Args, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct UpSettings {
    /// The one address for browsers and clients. Default: 127.0.0.1:8080
    #[arg(long, env = "ALDIS_UP_LISTEN", value_name = "ADDR")]
    listen: Option<Endpoint>,
    /// Where everything is kept; made if it is not there. Default: ./aldis-data
    #[arg(long, env = "ALDIS_UP_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Threads of the edge. Default: one per processor
    #[arg(long, env = "ALDIS_UP_SHARDS", value_name = "N")]
    shards: Option<usize>,
    /// How clients say who they are: dev (they just say it; on loopback only) or jwt (by a token).
    /// Default: dev
    #[arg(long, env = "ALDIS_UP_AUTH", value_name = "HOW")]
    auth: Option<String>,
    /// A file with a key that signs tokens: a public one in PEM (EdDSA, ES256), or the bytes of a
    /// secret (HS256). May be given more than once.
    #[arg(long, env = "ALDIS_UP_JWT_KEY", value_name = "FILE", value_delimiter = ',')]
    jwt_key: Vec<PathBuf>,
    /// Where such keys are published as a JWK set: https://..., or a file.
    #[arg(long, env = "ALDIS_UP_JWKS", value_name = "URL")]
    jwks: Option<String>,
    /// The `iss` that tokens must have. Default: any
    #[arg(long, env = "ALDIS_UP_JWT_ISSUER", value_name = "NAME")]
    jwt_issuer: Option<String>,
    /// The `aud` that tokens must have. Default: they must have none
    #[arg(long, env = "ALDIS_UP_JWT_AUDIENCE", value_name = "NAME")]
    jwt_audience: Option<String>,
    /// A name under which browsers reach this, besides localhost and loopback addresses.
    #[arg(long, env = "ALDIS_UP_HOST", value_name = "NAME", value_delimiter = ',')]
    host: Vec<String>,
    /// A web site that may connect, besides this one: https://chat.example.org
    #[arg(long, env = "ALDIS_UP_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    origin: Vec<String>,
    /// Compress messages (permessage-deflate) with clients that offer it. Ciphertext does not get
    /// smaller. Default: false
    #[arg(long, env = "ALDIS_UP_DEFLATE", value_name = "BOOL", num_args = 0..=1,
        default_missing_value = "true")]
    deflate: Option<bool>,
    /// Where /healthz, /readyz and /metrics of `up` itself are served. Default: 127.0.0.1, any free
    /// port
    #[arg(long, env = "ALDIS_UP_ADMIN", value_name = "ADDR")]
    admin: Option<Endpoint>,
    /// Print the configuration in effect as TOML, with the origin of each value, and end. Code 2
    /// says that the process could not start with it.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

#[derive(Args, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EdgeSettings {
    /// Where clients connect.
    #[arg(long, env = "ALDIS_EDGE_LISTEN", value_name = "ADDR")]
    listen: Option<Endpoint>,
    /// The sequencer's link address.
    #[arg(long, env = "ALDIS_EDGE_SEQUENCER", value_name = "ADDR")]
    sequencer: Option<Endpoint>,
    /// A file with the secret that all processes share: at least 32 characters.
    #[arg(long, env = "ALDIS_EDGE_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Threads. Default: one per processor
    #[arg(long, env = "ALDIS_EDGE_SHARDS", value_name = "N")]
    shards: Option<usize>,
    /// Where /healthz, /readyz and /metrics are served. Default: 127.0.0.1, any free port
    #[arg(long, env = "ALDIS_EDGE_ADMIN", value_name = "ADDR")]
    admin: Option<Endpoint>,
    /// A file that will hold that address.
    #[arg(long, env = "ALDIS_EDGE_ADMIN_FILE", value_name = "FILE")]
    admin_file: Option<PathBuf>,
    /// Unlike that of any other edge. Default: edge-1
    #[arg(long, env = "ALDIS_EDGE_NAME", value_name = "NAME")]
    name: Option<String>,
    /// How clients say who they are: dev (they just say it; on loopback only) or jwt (by a token).
    #[arg(long, env = "ALDIS_EDGE_AUTH", value_name = "HOW")]
    auth: Option<String>,
    /// A file with a key that signs tokens: a public one in PEM (EdDSA, ES256), or the bytes of a
    /// secret (HS256). May be given more than once.
    #[arg(long, env = "ALDIS_EDGE_JWT_KEY", value_name = "FILE", value_delimiter = ',')]
    jwt_key: Vec<PathBuf>,
    /// Where such keys are published as a JWK set: https://..., or a file.
    #[arg(long, env = "ALDIS_EDGE_JWKS", value_name = "URL")]
    jwks: Option<String>,
    /// The `iss` that tokens must have. Default: any
    #[arg(long, env = "ALDIS_EDGE_JWT_ISSUER", value_name = "NAME")]
    jwt_issuer: Option<String>,
    /// The `aud` that tokens must have. Default: they must have none
    #[arg(long, env = "ALDIS_EDGE_JWT_AUDIENCE", value_name = "NAME")]
    jwt_audience: Option<String>,
    /// A name under which browsers reach this, besides localhost and loopback addresses.
    #[arg(long, env = "ALDIS_EDGE_HOST", value_name = "NAME", value_delimiter = ',')]
    host: Vec<String>,
    /// A web site that may connect, besides this one: https://chat.example.org
    #[arg(long, env = "ALDIS_EDGE_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    origin: Vec<String>,
    /// The control socket of `aldis up`, which passes this.
    #[arg(long, env = "ALDIS_EDGE_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
    /// A Unix socket, made for this user alone, at which `aldis upgrade` puts a new process in the
    /// place of this one without parting any client. Default: none
    #[arg(long, env = "ALDIS_EDGE_HANDOVER", value_name = "PATH")]
    handover: Option<PathBuf>,
    /// Takes over from the edge that answers at --handover.
    #[arg(long, hide = true)]
    #[serde(skip)]
    take_over: bool,
    /// Silence after which a client is pinged, in milliseconds. Default: 30000
    #[arg(long, env = "ALDIS_EDGE_HEARTBEAT_MS", value_name = "MS")]
    heartbeat_ms: Option<u32>,
    /// Where sockets live: direct (in the rings' tables; Linux 6.13) or ordinary (in that of the
    /// process; Linux 6.1). Default: direct where the kernel can
    #[arg(long, env = "ALDIS_EDGE_DESCRIPTORS", value_name = "KIND")]
    descriptors: Option<String>,
    /// Receives, each soon after the one before, that make a connection busy: its receive stays
    /// armed (864 bytes of kernel memory) instead of a poll (256). 0: all do. Default: 4
    #[arg(long, env = "ALDIS_EDGE_BUSY_AFTER", value_name = "N")]
    busy_after: Option<u8>,
    /// Silence that ends it, in milliseconds. Default: 2000
    #[arg(long, env = "ALDIS_EDGE_BUSY_QUIET_MS", value_name = "MS")]
    busy_quiet_ms: Option<u32>,
    /// Compress messages (permessage-deflate) with clients that offer it. Ciphertext does not get
    /// smaller. Default: false
    #[arg(long, env = "ALDIS_EDGE_DEFLATE", value_name = "BOOL", num_args = 0..=1,
        default_missing_value = "true")]
    deflate: Option<bool>,
    /// Run each shard on one processor alone, round robin. Default: false
    #[arg(long, env = "ALDIS_EDGE_PIN", value_name = "BOOL", num_args = 0..=1,
        default_missing_value = "true")]
    pin: Option<bool>,
    /// A connection goes to the shard with the number of the processor on which it arrived, instead
    /// of by a hash. Default: false
    #[arg(long, env = "ALDIS_EDGE_STEER", value_name = "BOOL", num_args = 0..=1,
        default_missing_value = "true")]
    steer: Option<bool>,
    /// Connections at a time; 0: as many as the machine allows. Default: 0
    #[arg(long, env = "ALDIS_EDGE_CONNECTIONS", value_name = "N")]
    connections: Option<u32>,
    /// New connections a second; 0: no limit. Default: as many as the edge bears, measured
    #[arg(long, env = "ALDIS_EDGE_HANDSHAKES_PER_SECOND", value_name = "N")]
    handshakes_per_second: Option<u32>,
    /// Connections of one client address at a time, in each shard; 0: no limit. Default: 0
    #[arg(long, env = "ALDIS_EDGE_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    connections_per_address: Option<u32>,
    /// IPv6 addresses that share so many first bits are one. Default: 64
    #[arg(long, env = "ALDIS_EDGE_IPV6_PREFIX", value_name = "BITS")]
    ipv6_prefix: Option<u8>,
    /// Memory that this may use, with that of the kernel for its sockets: bytes (512M, 4G), or a
    /// share of what there is (75%). Clients are refused before it is used up. Default: 75%
    #[arg(long, env = "ALDIS_EDGE_MEMORY_BUDGET", value_name = "SIZE")]
    memory_budget: Option<String>,
    /// Print the configuration in effect as TOML, with the origin of each value, and end. Code 2
    /// says that the process could not start with it.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

#[derive(Args, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SequencerSettings {
    /// Where edges link to.
    #[arg(long, env = "ALDIS_SEQUENCER_LISTEN", value_name = "ADDR")]
    listen: Option<Endpoint>,
    /// The store's link address.
    #[arg(long, env = "ALDIS_SEQUENCER_STORE", value_name = "ADDR")]
    store: Option<Endpoint>,
    /// A file with the secret that all processes share: at least 32 characters.
    #[arg(long, env = "ALDIS_SEQUENCER_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are served. Default: 127.0.0.1, any free port
    #[arg(long, env = "ALDIS_SEQUENCER_ADMIN", value_name = "ADDR")]
    admin: Option<Endpoint>,
    /// A file that will hold that address.
    #[arg(long, env = "ALDIS_SEQUENCER_ADMIN_FILE", value_name = "FILE")]
    admin_file: Option<PathBuf>,
    /// Default: sequencer-1
    #[arg(long, env = "ALDIS_SEQUENCER_NAME", value_name = "NAME")]
    name: Option<String>,
    /// New messages of one user a second, over all his connections; 0: no limit. Default: 0
    #[arg(long, env = "ALDIS_SEQUENCER_USER_SENDS_PER_SECOND", value_name = "N")]
    user_sends_per_second: Option<u32>,
    /// How many of them may come at once; 0: as many as in a second. Default: 0
    #[arg(long, env = "ALDIS_SEQUENCER_USER_SENDS_BURST", value_name = "N")]
    user_sends_burst: Option<u32>,
    /// New messages in one conversation a second; 0: no limit. Default: 0
    #[arg(long, env = "ALDIS_SEQUENCER_CONVO_SENDS_PER_SECOND", value_name = "N")]
    convo_sends_per_second: Option<u32>,
    /// How many of them may come at once; 0: as many as in a second. Default: 0
    #[arg(long, env = "ALDIS_SEQUENCER_CONVO_SENDS_BURST", value_name = "N")]
    convo_sends_burst: Option<u32>,
    /// Live messages that one channel pushes a second, counted for each session; 0: no limit.
    /// Default: 4000000
    #[arg(long, env = "ALDIS_SEQUENCER_CHANNEL_PUSHES_PER_SECOND", value_name = "N")]
    channel_pushes_per_second: Option<u32>,
    /// Groups and channels that one user may own; 0: no limit. Default: 10000
    #[arg(long, env = "ALDIS_SEQUENCER_GROUPS_PER_USER", value_name = "N")]
    groups_per_user: Option<u32>,
    /// What no device of a recipient acknowledged for so long becomes a dead letter, in seconds of
    /// service. Default: 2592000, 30 days
    #[arg(long, env = "ALDIS_SEQUENCER_DEAD_AFTER_S", value_name = "S")]
    dead_after_s: Option<u64>,
    /// Print the configuration in effect as TOML, with the origin of each value, and end. Code 2
    /// says that the process could not start with it.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

#[derive(Args, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct StoreSettings {
    /// Where the log and its index are kept; made if it is not there.
    #[arg(long, env = "ALDIS_STORE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where sequencers link to.
    #[arg(long, env = "ALDIS_STORE_LISTEN", value_name = "ADDR")]
    listen: Option<Endpoint>,
    /// A file with the secret that all processes share: at least 32 characters.
    #[arg(long, env = "ALDIS_STORE_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are served. Default: 127.0.0.1, any free port
    #[arg(long, env = "ALDIS_STORE_ADMIN", value_name = "ADDR")]
    admin: Option<Endpoint>,
    /// A file that will hold that address.
    #[arg(long, env = "ALDIS_STORE_ADMIN_FILE", value_name = "FILE")]
    admin_file: Option<PathBuf>,
    /// Default: store-1
    #[arg(long, env = "ALDIS_STORE_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Print the configuration in effect as TOML, with the origin of each value, and end. Code 2
    /// says that the process could not start with it.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

#[derive(Args, Debug)]
pub struct RepairSettings {
    /// The directory of the store, or that of `aldis up`.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Give up what cannot be restored; it is written down before.
    #[arg(long)]
    accept_loss: bool,
    /// Only say what is wrong and what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Move the index aside although it can be read; the log rebuilds it.
    #[arg(long)]
    rebuild_index: bool,
}

#[derive(Args, Debug)]
pub struct EchoSettings {
    /// Where clients connect, on any path.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001")]
    pub listen: Endpoint,
    /// Threads.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub shards: usize,
    /// Compress messages (permessage-deflate) with clients that offer it.
    #[arg(long)]
    pub deflate: bool,
    /// Where sockets live: direct or ordinary, as with `aldis edge`.
    #[arg(long, value_name = "KIND", default_value_t = kernel_descriptors())]
    pub descriptors: String,
}

impl RepairSettings {
    pub fn into_options(self, unix_ms: u64) -> Result<RepairOptions, Usage> {
        let below = self.data.join("store");
        let data = if below.join("log").is_dir() { below } else { self.data };
        if !data.join("log").is_dir() {
            let path = data.display();
            return Err(Usage(format!("--data: {path} is not the directory of a store")));
        }
        Ok(RepairOptions {
            data,
            accept_loss: self.accept_loss,
            dry_run: self.dry_run,
            rebuild_index: self.rebuild_index,
            unix_ms,
        })
    }
}

impl UpSettings {
    /// Takes from `file` what is not given here.
    pub fn over(self, file: UpSettings) -> UpSettings {
        UpSettings {
            listen: self.listen.or(file.listen),
            data: self.data.or(file.data),
            shards: self.shards.or(file.shards),
            auth: self.auth.or(file.auth),
            jwt_key: first_given(self.jwt_key, file.jwt_key),
            jwks: self.jwks.or(file.jwks),
            jwt_issuer: self.jwt_issuer.or(file.jwt_issuer),
            jwt_audience: self.jwt_audience.or(file.jwt_audience),
            host: first_given(self.host, file.host),
            origin: first_given(self.origin, file.origin),
            deflate: self.deflate.or(file.deflate),
            admin: self.admin.or(file.admin),
            print_config: self.print_config,
        }
    }

    /// With what it runs when nobody says otherwise. What is left out is for the edge to decide.
    pub fn filled(self) -> UpSettings {
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
        UpSettings {
            listen: self.listen.or(Some(Endpoint(loopback))),
            data: self.data.or_else(|| Some(PathBuf::from("./aldis-data"))),
            auth: self.auth.or_else(|| Some("dev".to_owned())),
            admin: self.admin.or(Some(ANY_LOOPBACK)),
            ..self
        }
    }

    /// `config` and `log` are handed on to the children as they are.
    pub fn into_options(
        self,
        config: Option<PathBuf>,
        log: Option<String>,
    ) -> Result<UpOptions, Usage> {
        let listen = needed(self.listen, "up", "listen")?.0;
        let identity = IdentitySettings {
            auth: needed(self.auth, "up", "auth")?,
            jwt_keys: self.jwt_key,
            jwks: self.jwks,
            issuer: self.jwt_issuer,
            audience: self.jwt_audience,
        };
        // What the edge would refuse is better refused at once.
        identity.auth(listen)?;
        let shards = self.shards.map(check_shards).transpose()?;
        Ok(UpOptions {
            listen,
            data: needed(self.data, "up", "data")?,
            admin: needed(self.admin, "up", "admin")?.0,
            shards,
            identity,
            hosts: self.host,
            origins: self.origin,
            deflate: self.deflate,
            config,
            log,
        })
    }
}

impl EdgeSettings {
    /// Takes from `file` what is not given here.
    pub fn over(self, file: EdgeSettings) -> EdgeSettings {
        EdgeSettings {
            listen: self.listen.or(file.listen),
            sequencer: self.sequencer.or(file.sequencer),
            secret_file: self.secret_file.or(file.secret_file),
            shards: self.shards.or(file.shards),
            admin: self.admin.or(file.admin),
            admin_file: self.admin_file.or(file.admin_file),
            name: self.name.or(file.name),
            auth: self.auth.or(file.auth),
            jwt_key: first_given(self.jwt_key, file.jwt_key),
            jwks: self.jwks.or(file.jwks),
            jwt_issuer: self.jwt_issuer.or(file.jwt_issuer),
            jwt_audience: self.jwt_audience.or(file.jwt_audience),
            host: first_given(self.host, file.host),
            origin: first_given(self.origin, file.origin),
            control: self.control.or(file.control),
            handover: self.handover.or(file.handover),
            take_over: self.take_over,
            heartbeat_ms: self.heartbeat_ms.or(file.heartbeat_ms),
            descriptors: self.descriptors.or(file.descriptors),
            busy_after: self.busy_after.or(file.busy_after),
            busy_quiet_ms: self.busy_quiet_ms.or(file.busy_quiet_ms),
            deflate: self.deflate.or(file.deflate),
            pin: self.pin.or(file.pin),
            steer: self.steer.or(file.steer),
            connections: self.connections.or(file.connections),
            handshakes_per_second: self.handshakes_per_second.or(file.handshakes_per_second),
            connections_per_address: self.connections_per_address.or(file.connections_per_address),
            ipv6_prefix: self.ipv6_prefix.or(file.ipv6_prefix),
            memory_budget: self.memory_budget.or(file.memory_budget),
            print_config: self.print_config,
        }
    }

    /// With what it runs when nobody says otherwise.
    pub fn filled(self) -> EdgeSettings {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        EdgeSettings {
            shards: self.shards.or_else(|| Some(processors())),
            admin: self.admin.or(Some(ANY_LOOPBACK)),
            name: self.name.or_else(|| Some("edge-1".to_owned())),
            heartbeat_ms: self.heartbeat_ms.or(Some(HEARTBEAT_MS_DEFAULT)),
            descriptors: self.descriptors.or_else(|| Some(kernel_descriptors())),
            busy_after: self.busy_after.or(Some(Tiers::default().promote_after)),
            busy_quiet_ms: self.busy_quiet_ms.or(Some(Tiers::default().quiet_ms as u32)),
            deflate: self.deflate.or(Some(false)),
            pin: self.pin.or(Some(false)),
            steer: self.steer.or(Some(false)),
            connections: self.connections.or(Some(0)),
            connections_per_address: self.connections_per_address.or(Some(0)),
            ipv6_prefix: self.ipv6_prefix.or(Some(IPV6_PREFIX_DEFAULT)),
            memory_budget: self.memory_budget.or_else(|| Some(MEMORY_BUDGET_DEFAULT.to_owned())),
            ..self
        }
    }

    pub fn into_options(self) -> Result<EdgeOptions, Usage> {
        let listen = needed(self.listen, "edge", "listen")?.0;
        let identity = IdentitySettings {
            auth: needed(self.auth, "edge", "auth")?,
            jwt_keys: self.jwt_key,
            jwks: self.jwks,
            issuer: self.jwt_issuer,
            audience: self.jwt_audience,
        };
        let auth = identity.auth(listen)?;
        let shards = check_shards(needed(self.shards, "edge", "shards")?)?;
        let admission = AdmissionOptions {
            handshakes_per_second: self.handshakes_per_second.unwrap_or_default(),
            is_measured: self.handshakes_per_second.is_none(),
            shards: shards as u32,
            connections_per_address: needed(
                self.connections_per_address,
                "edge",
                "connections-per-address",
            )?,
            ipv6_prefix: check_prefix(needed(self.ipv6_prefix, "edge", "ipv6-prefix")?)?,
        };
        let tiers = Tiers {
            promote_after: needed(self.busy_after, "edge", "busy-after")?,
            quiet_ms: check_quiet(needed(self.busy_quiet_ms, "edge", "busy-quiet-ms")?)?,
        };
        Ok(EdgeOptions {
            name: needed(self.name, "edge", "name")?,
            listen,
            sequencer: needed(self.sequencer, "edge", "sequencer")?.0,
            secret: read_secret(&needed(self.secret_file, "edge", "secret-file")?)?,
            shards,
            auth,
            hosts: self.host,
            origins: self.origin,
            control: self.control,
            handover: self.handover,
            is_successor: self.take_over,
            heartbeat_ms: check_heartbeat(needed(self.heartbeat_ms, "edge", "heartbeat-ms")?)?,
            descriptors: check_descriptors(&needed(self.descriptors, "edge", "descriptors")?)?,
            tiers,
            deflate: needed(self.deflate, "edge", "deflate")?,
            pin: needed(self.pin, "edge", "pin")?,
            steer: needed(self.steer, "edge", "steer")?,
            connections: needed(self.connections, "edge", "connections")? as usize,
            admission,
            capacity: 0,
            memory_budget: check_budget(&needed(self.memory_budget, "edge", "memory-budget")?)?,
            admin: admin_options(needed(self.admin, "edge", "admin")?, self.admin_file),
        })
    }
}

impl SequencerSettings {
    /// Takes from `file` what is not given here.
    pub fn over(self, file: SequencerSettings) -> SequencerSettings {
        SequencerSettings {
            listen: self.listen.or(file.listen),
            store: self.store.or(file.store),
            secret_file: self.secret_file.or(file.secret_file),
            admin: self.admin.or(file.admin),
            admin_file: self.admin_file.or(file.admin_file),
            name: self.name.or(file.name),
            user_sends_per_second: self.user_sends_per_second.or(file.user_sends_per_second),
            user_sends_burst: self.user_sends_burst.or(file.user_sends_burst),
            convo_sends_per_second: self.convo_sends_per_second.or(file.convo_sends_per_second),
            convo_sends_burst: self.convo_sends_burst.or(file.convo_sends_burst),
            channel_pushes_per_second: self
                .channel_pushes_per_second
                .or(file.channel_pushes_per_second),
            groups_per_user: self.groups_per_user.or(file.groups_per_user),
            dead_after_s: self.dead_after_s.or(file.dead_after_s),
            print_config: self.print_config,
        }
    }

    /// With what it runs when nobody says otherwise.
    pub fn filled(self) -> SequencerSettings {
        SequencerSettings {
            admin: self.admin.or(Some(ANY_LOOPBACK)),
            name: self.name.or_else(|| Some("sequencer-1".to_owned())),
            user_sends_per_second: self.user_sends_per_second.or(Some(0)),
            user_sends_burst: self.user_sends_burst.or(Some(0)),
            convo_sends_per_second: self.convo_sends_per_second.or(Some(0)),
            convo_sends_burst: self.convo_sends_burst.or(Some(0)),
            channel_pushes_per_second: self
                .channel_pushes_per_second
                .or(Some(CHANNEL_PUSHES_DEFAULT)),
            groups_per_user: self.groups_per_user.or(Some(GROUPS_PER_USER_DEFAULT)),
            dead_after_s: self.dead_after_s.or(Some(AGE_MS_DEFAULT / 1_000)),
            ..self
        }
    }

    pub fn into_options(self) -> Result<SequencerOptions, Usage> {
        let limits = LimitOptions {
            user_sends: rate(
                needed(self.user_sends_per_second, "sequencer", "user-sends-per-second")?,
                needed(self.user_sends_burst, "sequencer", "user-sends-burst")?,
            ),
            convo_sends: rate(
                needed(self.convo_sends_per_second, "sequencer", "convo-sends-per-second")?,
                needed(self.convo_sends_burst, "sequencer", "convo-sends-burst")?,
            ),
            channel_pushes: rate(
                needed(self.channel_pushes_per_second, "sequencer", "channel-pushes-per-second")?,
                0,
            ),
            groups_per_user: needed(self.groups_per_user, "sequencer", "groups-per-user")?.into(),
        };
        Ok(SequencerOptions {
            limits,
            name: needed(self.name, "sequencer", "name")?,
            listen: needed(self.listen, "sequencer", "listen")?.0,
            store: needed(self.store, "sequencer", "store")?.0,
            secret: read_secret(&needed(self.secret_file, "sequencer", "secret-file")?)?,
            admin: admin_options(needed(self.admin, "sequencer", "admin")?, self.admin_file),
            dead_after_ms: check_dead_after(needed(
                self.dead_after_s,
                "sequencer",
                "dead-after-s",
            )?)?,
        })
    }
}

impl StoreSettings {
    /// Takes from `file` what is not given here.
    pub fn over(self, file: StoreSettings) -> StoreSettings {
        StoreSettings {
            data: self.data.or(file.data),
            listen: self.listen.or(file.listen),
            secret_file: self.secret_file.or(file.secret_file),
            admin: self.admin.or(file.admin),
            admin_file: self.admin_file.or(file.admin_file),
            name: self.name.or(file.name),
            print_config: self.print_config,
        }
    }

    /// With what it runs when nobody says otherwise.
    pub fn filled(self) -> StoreSettings {
        StoreSettings {
            admin: self.admin.or(Some(ANY_LOOPBACK)),
            name: self.name.or_else(|| Some("store-1".to_owned())),
            ..self
        }
    }

    pub fn into_options(self) -> Result<StoreOptions, Usage> {
        Ok(StoreOptions {
            name: needed(self.name, "store", "name")?,
            data: needed(self.data, "store", "data")?,
            listen: needed(self.listen, "store", "listen")?.0,
            secret: read_secret(&needed(self.secret_file, "store", "secret-file")?)?,
            admin: admin_options(needed(self.admin, "store", "admin")?, self.admin_file),
        })
    }
}

impl EchoSettings {
    pub fn into_options(self) -> Result<EchoOptions, Usage> {
        let EchoSettings { listen, shards, deflate, descriptors } = self;
        let (shards, descriptors) = (check_shards(shards)?, check_descriptors(&descriptors)?);
        Ok(EchoOptions { listen: listen.0, shards, deflate, descriptors })
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let hint = "write it as 127.0.0.1:8080, [::1]:8080 or name:8080";
        let mut addresses = text
            .to_socket_addrs()
            .map_err(|error| format!("{text:?} is not an address ({error}); {hint}"))?;
        let first = addresses.next();
        first.map(Endpoint).ok_or_else(|| format!("{text:?} has no address; {hint}"))
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.0.to_string()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Endpoint, String> {
        text.parse()
    }
}

fn first_given<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

fn needed<T>(value: Option<T>, process: &str, key: &str) -> Result<T, Usage> {
    let variable = format!("ALDIS_{process}_{key}").replace('-', "_").to_ascii_uppercase();
    value.ok_or_else(|| {
        Usage(format!(
            "--{key} is needed; give it as a flag, as {variable} in the environment, \
             or as `{key}` in [{process}] of the configuration file"
        ))
    })
}

fn admin_options(address: Endpoint, file: Option<PathBuf>) -> AdminOptions {
    AdminOptions { address: address.0, file }
}

/// 0 a second: none. A burst of 0: what flows in within a second.
fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    let burst = if burst == 0 { per_second } else { burst };
    (per_second > 0).then_some(Rate { per_second, burst })
}

pub fn check_shards(shards: usize) -> Result<usize, Usage> {
    if (1..=SHARD_COUNT_MAX).contains(&shards) {
        return Ok(shards);
    }
    Err(Usage(format!(
        "--shards {shards}: it must be 1 to {SHARD_COUNT_MAX}; leave it out for one per processor"
    )))
}

fn check_heartbeat(heartbeat_ms: u32) -> Result<u32, Usage> {
    if (100..=3_600_000).contains(&heartbeat_ms) {
        return Ok(heartbeat_ms);
    }
    Err(Usage(format!(
        "--heartbeat-ms {heartbeat_ms}: it must be 100 to 3600000; the default is 30000"
    )))
}

fn check_dead_after(seconds: u64) -> Result<u64, Usage> {
    if (1..=3_153_600_000).contains(&seconds) {
        return Ok(seconds * 1_000);
    }
    Err(Usage(format!(
        "--dead-after-s {seconds}: it must be 1 to 3153600000; the default is 2592000, 30 days"
    )))
}

fn check_prefix(bits: u8) -> Result<u8, Usage> {
    if (1..=128).contains(&bits) {
        return Ok(bits);
    }
    Err(Usage(format!("--ipv6-prefix {bits}: it must be 1 to 128; the default is 64")))
}

fn check_budget(text: &str) -> Result<MemoryBudget, Usage> {
    text.parse().map_err(|error| Usage(format!("--memory-budget {error}")))
}

fn kernel_descriptors() -> String {
    Descriptors::of_this_kernel().name().to_owned()
}

fn check_descriptors(text: &str) -> Result<Descriptors, Usage> {
    text.parse().map_err(|error| Usage(format!("--descriptors {error}")))
}

fn check_quiet(quiet_ms: u32) -> Result<u64, Usage> {
    if (100..=3_600_000).contains(&quiet_ms) {
        return Ok(quiet_ms.into());
    }
    Err(Usage(format!(
        "--busy-quiet-ms {quiet_ms}: it must be 100 to 3600000; the default is 2000"
    )))
}

pub fn read_secret(path: &Path) -> Result<Vec<u8>, Usage> {
    let bytes = fs::read(path)
        .map_err(|error| Usage(format!("cannot read the secret {}: {error}", path.display())))?;
    let secret = bytes.trim_ascii();
    if secret.len() < SECRET_SIZE_MIN {
        return Err(Usage(format!(
            "the secret in {} has {} characters; it needs at least {SECRET_SIZE_MIN}, for example \
             those of `head -c 32 /dev/urandom | xxd -p -c 64`",
            path.display(),
            secret.len()
        )));
    }
    Ok(secret.to_vec())
}
