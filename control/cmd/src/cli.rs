//! The command line: the contract with users and scripts.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use parking_lot::Mutex;
use prometheus_client::registry::Registry as MetricsRegistry;
use tandem_api::Clock;
use tandem_apiserver::{AuditLog, LogOptions};

/// Kubernetes in one binary, with WebAssembly components as pods beside containers.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Start here:\n  sudo tandem up --set-context     a cluster of one machine\n  kubectl get nodes                what it is made of\n  tandem push app.wasm registry.tandem/app:1\n  kubectl create deployment app --image=registry.tandem/app:1"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How log lines are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "TANDEM_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a control-plane member and a node in one, in the foreground.
    #[command(
        after_help = "Examples:\n  sudo tandem up\n  sudo tandem up --listen 0.0.0.0:6443 --advertise 192.0.2.10   # other nodes can join\n\nCtrl-C stops Tandem and leaves the workloads running; start it again and it takes them over.\n`tandem down` stops the workloads."
    )]
    Up(Box<Up>),
    /// Run a control-plane member.
    #[command(
        after_help = "Examples:\n  tandem control --data-dir /var/lib/tandem --listen 0.0.0.0:6443 --advertise 192.0.2.10\n\nA further member, with a token of `tandem token create --role control`:\n  tandem control --listen 0.0.0.0:6443 --advertise 192.0.2.11 --join https://192.0.2.10:6443 --token \"$(cat token)\"\n\nIt listens first, and votes as soon as it has caught up. Started again it needs neither --join nor --token."
    )]
    Control(Box<Control>),
    /// Run a node that joins a cluster.
    #[command(
        after_help = "Example:\n  sudo tandem node --server https://192.0.2.10:6443 --token \"$(cat token)\"\n\n`tandem token create --role node` on a control-plane member prints the token."
    )]
    Node(Box<Node>),
    /// Make a token with which a machine joins the cluster.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The members of the control plane.
    #[command(
        after_help = "Examples:\n  tandem member list\n  tandem member remove 12          # of a machine that does not come back\n  tandem member promote 12         # have one vote that joined to listen\n\nA new member joins with `tandem control --join`; `--replace ID` gives it the place of another."
    )]
    Member {
        #[command(subcommand)]
        command: MemberCommand,
    },
    /// Show how the cluster is: members, leader, lag, nodes, versions, certificates, disks.
    #[command(after_help = "Examples:\n  tandem status\n  tandem status -o json")]
    Status(Status),
    /// Upload a WebAssembly component to the cluster's registry and print its image reference.
    #[command(after_help = "Example:\n  tandem push target/wasm32-wasip2/release/hello.wasm registry.tandem/hello:1")]
    Push(Push),
    /// Show what a WebAssembly file is: its world, imports, exports and the grants that it needs.
    #[command(after_help = "Examples:\n  tandem inspect hello.wasm\n  tandem inspect registry.tandem/hello:1")]
    Inspect(Inspect),
    /// Stop this machine's workloads and remove its namespaces, rules and mounts; keep the data.
    Down(DataDir),
    /// The WebAssembly host of a node; started by the node itself.
    #[command(hide = true, disable_help_flag = true)]
    WasmHost {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DataDir {
    /// Where everything is kept [default: /var/lib/tandem for root, else the user's data folder].
    #[arg(long, value_name = "DIR", env = "TANDEM_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What a control-plane member takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct MemberFlags {
    /// The address of the API server.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// The address at which others reach this member, where it is not the one that it listens on.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) advertise: Option<std::net::IpAddr>,
    /// The member's name among the members [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) member_name: Option<String>,
    /// A KubeSchedulerConfiguration with the profiles of the scheduler; each member should have the same.
    #[arg(long, value_name = "FILE")]
    pub(crate) scheduler_config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) autoscaling: AutoscalingFlags,
    #[command(flatten)]
    pub(crate) settings: SettingsFlags,
    #[command(flatten)]
    pub(crate) audit: AuditFlags,
}

/// How closely workloads follow what is measured.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct AutoscalingFlags {
    /// Time between two looks of HorizontalPodAutoscalers at what their pods use [default: 15s].
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_period, hide_default_value = true)]
    pub(crate) horizontal_pod_autoscaler_sync_period: Duration,
    /// How long what nodes say of their use is good for [default: 5s].
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_period, hide_default_value = true)]
    pub(crate) metric_resolution: Duration,
}

impl MemberFlags {
    pub(crate) fn name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.member_name.clone().unwrap_or_else(host)
    }
}

/// Each member writes down the requests that it answers.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Audit log")]
pub(crate) struct AuditFlags {
    /// A file with an audit.k8s.io/v1 Policy, which says what is written down. Credentials never are.
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Where to, one JSON object a line; `-` is the standard output.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// The size at which a file is put aside.
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    audit_log_maxsize: u64,
    /// How long files that were put aside stay; 0: for ever.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    audit_log_maxage: u32,
    /// How many of them stay; 0: all.
    #[arg(long, value_name = "FILES", default_value_t = 0)]
    audit_log_maxbackup: usize,
}

impl AuditFlags {
    /// Begins to write, where that was asked for.
    pub(crate) fn open(
        &self,
        clock: &Arc<dyn Clock>,
        metrics: &Mutex<MetricsRegistry>,
    ) -> anyhow::Result<Option<AuditLog>> {
        let (Some(policy), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) else { return Ok(None) };
        let text = std::fs::read_to_string(policy)
            .with_context(|| format!("read --audit-policy-file {}", policy.display()))?;
        let days = i64::from(self.audit_log_maxage);
        let options = LogOptions {
            path: path.clone(),
            max_bytes: self.audit_log_maxsize << 20,
            max_age: (days > 0).then(|| jiff::SignedDuration::from_hours(days * 24)),
            max_backups: Some(self.audit_log_maxbackup).filter(|most| *most > 0),
        };
        AuditLog::open(&text, options, clock.clone(), &mut metrics.lock()).map(Some).map_err(anyhow::Error::msg)
    }
}

/// Fixed when the cluster first starts; giving another value later is an error.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster settings (fixed at first start)")]
pub(crate) struct SettingsFlags {
    /// A YAML file with cluster settings: podCidr, nodeMask, serviceCidr, dnsDomain, dnsAddress, tokenIssuer, nodePorts, externalIPs, featureGates.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The addresses of all pods [default: 10.128.0.0/10].
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr: Option<ipnet::Ipv4Net>,
    /// The prefix length of one node's share of the pod addresses [default: 18].
    #[arg(long, value_name = "BITS")]
    pub(crate) node_mask: Option<u8>,
    /// The addresses of Services [default: 10.96.0.0/16].
    #[arg(long, value_name = "CIDR")]
    pub(crate) service_cidr: Option<ipnet::Ipv4Net>,
    /// The domain of Service names [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_domain: Option<String>,
    /// The address of cluster DNS [default: the tenth of the Service addresses].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns_address: Option<std::net::Ipv4Addr>,
    /// The issuer of ServiceAccount tokens [default: https://kubernetes.default.svc.DOMAIN].
    #[arg(long, value_name = "URL")]
    pub(crate) token_issuer: Option<String>,
}

/// What a node takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeFlags {
    /// The node's name [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// The node's address [default: that of the default route's interface].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node_ip: Option<std::net::Ipv4Addr>,
    /// `auto`: run an own containerd where it is installed; `off`: components only; or the socket of one that runs.
    #[arg(long, default_value = "auto", value_name = "auto|off|SOCKET")]
    pub(crate) containerd: String,
    /// The port of the node's own server.
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    pub(crate) node_port: u16,
    /// The loopback port under which the node reaches the API server and the registry.
    #[arg(long, default_value_t = 6444, value_name = "PORT")]
    pub(crate) local_port: u16,
    /// The port on which the node serves Ingresses over HTTP; 0: none.
    #[arg(long, default_value_t = 80, value_name = "PORT")]
    pub(crate) ingress_http_port: u16,
    /// The port on which the node serves Ingresses over TLS; 0: none.
    #[arg(long, default_value_t = 443, value_name = "PORT")]
    pub(crate) ingress_https_port: u16,
    /// A public registry that the cluster's own registry stands in for, such as `docker.io`. May be given several times.
    #[arg(long = "mirror", value_name = "HOST", default_values = ["docker.io"])]
    pub(crate) mirrors: Vec<String>,
    /// The time over which the node takes rates of use and of requests [default: 10s].
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_period, hide_default_value = true)]
    pub(crate) metric_window: Duration,
    /// Refuse to run with a containerd or runc that has known security holes.
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) member: MemberFlags,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Merge a context `tandem` into the user's kubeconfig and make it current.
    #[arg(long)]
    pub(crate) set_context: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Control {
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) member: MemberFlags,
    #[command(flatten)]
    pub(crate) join: JoinFlags,
}

/// How a new member finds the cluster that it joins.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct JoinFlags {
    /// A member of the cluster to join, `https://HOST:PORT`; needed the first time only.
    #[arg(long, value_name = "URL", requires = "token")]
    pub(crate) join: Option<String>,
    /// The token of `tandem token create --role control`, needed the first time only.
    #[arg(long, env = "TANDEM_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// The id of a member whose place this one takes once it has caught up.
    #[arg(long, value_name = "ID", requires = "join")]
    pub(crate) replace: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Node {
    #[command(flatten)]
    pub(crate) data: DataDir,
    /// A control-plane member, `https://HOST:PORT`.
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
    /// The token, needed the first time only.
    #[arg(long, env = "TANDEM_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a token that is good for a while.
    Create {
        #[command(flatten)]
        data: DataDir,
        /// What the machine that joins becomes.
        #[arg(long, value_enum)]
        role: Role,
        /// How long the token is good for, such as `30m` or `24h`.
        #[arg(long, default_value = "1h", value_parser = parse_ttl)]
        ttl: jiff::SignedDuration,
        /// The kubeconfig of an administrator [env: KUBECONFIG] [default: DIR/admin.kubeconfig].
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// A member of the control plane; whoever holds the token gets the cluster's keys.
    Control,
    Node,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Show the members.
    List {
        #[command(flatten)]
        cluster: Registry,
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Make a member that listens vote, if it has caught up.
    Promote {
        id: u64,
        #[command(flatten)]
        cluster: Registry,
    },
    /// Take a member out of the cluster. Its data folder is of no use afterwards.
    Remove {
        id: u64,
        #[command(flatten)]
        cluster: Registry,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) cluster: Registry,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Registry {
    #[command(flatten)]
    pub(crate) data: DataDir,
    /// The kubeconfig of the cluster [env: KUBECONFIG] [default: DIR/admin.kubeconfig].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Push {
    /// The component.
    pub(crate) file: PathBuf,
    /// Where it goes, such as `registry.tandem/hello:1`.
    pub(crate) reference: String,
    #[command(flatten)]
    pub(crate) registry: Registry,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Inspect {
    /// A file, or an image in the cluster's registry.
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) registry: Registry,
}

fn parse_ttl(text: &str) -> Result<jiff::SignedDuration, String> {
    let ttl: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}; write it as 30m or 24h"))?;
    if ttl.is_positive() { Ok(ttl) } else { Err("it must be longer than nothing".to_owned()) }
}

/// A period of a tenth of a second to an hour.
fn parse_period(text: &str) -> Result<Duration, String> {
    let period: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}; write it as 15s or 1m"))?;
    let period = Duration::try_from(period).map_err(|_| "it must be longer than nothing".to_owned())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    if allowed.contains(&period) { Ok(period) } else { Err("it must be between 100ms and 1h".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_checked() {
        assert!(parse_ttl("90m").is_ok());
        assert!(parse_ttl("-1h").is_err());
        assert!(parse_ttl("soon").is_err());
        assert_eq!(parse_period("1s"), Ok(Duration::from_secs(1)));
        for wrong in ["0s", "-1s", "50ms", "2h", "often"] {
            assert!(parse_period(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn periods_are_those_of_kubernetes_unless_another_is_asked_for() {
        let Command::Up(up) = Cli::parse_from(["tandem", "up"]).command else { panic!("another command") };
        assert_eq!(up.member.autoscaling.horizontal_pod_autoscaler_sync_period, tandem_controllers::AUTOSCALER_PERIOD);
        assert_eq!(up.member.autoscaling.metric_resolution, tandem_apiserver::METRIC_RESOLUTION);
        assert_eq!(up.node.metric_window, tandem_agent::WINDOW);
    }
}
