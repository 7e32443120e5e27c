//! The command line: every subcommand with its help. What it means is checked here, before anything happens.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Synthetic monitoring, SLO burn alerts and chaos testing in one closed loop.
#[derive(Debug, Parser)]
#[command(
    name = "probity",
    version,
    propagate_version = true,
    after_help = "Examples:\n  probity up --demo                         a whole system with a shop to watch, on this machine\n  probity probe https://example.com         one probe, no server needed\n  probity apply -f probes.yaml              tell a cluster what to watch\n  probity get probes -w                     see it\n  probity gameday run shop-outage           break it on purpose, and see whether the alert comes\n\nExit codes: 0 yes, 1 no, 2 misuse, 3 unreachable or no quorum."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every subcommand takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Of every command")]
pub(crate) struct Global {
    /// gRPC addresses of coordinators, host:port, separated by commas [default: the context's, or 127.0.0.1:7601]
    #[arg(long, global = true, env = "PROBITY_SERVER", value_name = "ADDR", value_delimiter = ',')]
    pub(crate) server: Vec<String>,
    /// Directory with ca.crt, tls.crt and tls.key (`probity ca init` writes them); without it plain text, on loopback only
    #[arg(long, global = true, env = "PROBITY_TLS_DIR", value_name = "DIR")]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Namespace [default: the context's, or default]
    #[arg(short, long, global = true, env = "PROBITY_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Context of `probity context`: servers, TLS files, namespace and token by one name (a token alone: PROBITY_TOKEN)
    #[arg(long, global = true, env = "PROBITY_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Read what one coordinator knows without asking a quorum; says on standard error how old that may be
    #[arg(long, global = true)]
    pub(crate) stale: bool,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// More columns
    Wide,
    /// The read API's JSON (docs/api.md)
    Json,
    /// The same as YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole single-node Probity on this machine: coordinator, three probers, web page
    Up(UpArgs),
    /// Run a coordinator from a configuration file
    #[command(after_help = "Example:\n  probity coordinator --config coordinator.yaml --check\n  probity coordinator --config coordinator.yaml")]
    Coordinator(ServerArgs),
    /// Run a prober from a configuration file
    #[command(after_help = "Example:\n  probity prober --config prober.yaml --check\n  probity prober --config prober.yaml")]
    Prober(ProberArgs),
    /// Run the demo's shop: small HTTP, TCP and DNS services to practise on
    Shop(ShopArgs),
    /// Probe once, from here, without any server
    Probe(Box<crate::cmd::probe::ProbeArgs>),
    /// Apply resources: create what is new, change what differs
    #[command(after_help = "Examples:\n  probity apply -f probes.yaml --dry-run\n  probity apply -f monitoring/\n  cat probe.yaml | probity apply -f -")]
    Apply(ApplyArgs),
    /// Show what `apply` would change
    #[command(after_help = "Example:\n  probity diff -f monitoring/        exit 0: no difference, 1: some")]
    Diff(FilesArgs),
    /// Check resources without a server
    #[command(after_help = "Example:\n  probity validate -f monitoring/")]
    Validate(FilesArgs),
    /// List resources, or what the cluster knows of them
    #[command(
        after_help = "Examples:\n  probity get probes -w\n  probity get slos -A -o wide\n  probity get probe shop-http -o yaml\n\nKinds: probes slos burnratepolicies receivers routes scenarios probers members alerts episodes gamedays faults events audit"
    )]
    Get(GetArgs),
    /// Everything about one thing
    #[command(after_help = "Example:\n  probity describe probe shop-http")]
    Describe(OneArgs),
    /// Delete a resource
    #[command(after_help = "Example:\n  probity delete probe shop-http")]
    Delete(DeleteArgs),
    /// Documentation of the fields of a kind
    #[command(after_help = "Examples:\n  probity explain probe.spec.http\n  probity explain --schema > probity.schema.json")]
    Explain(ExplainArgs),
    /// How the cluster is; exit 1 when degraded
    Status,
    /// What happened
    #[command(after_help = "Examples:\n  probity events -w\n  probity events --for Probe/shop-http")]
    Events(EventsArgs),
    /// Who changed what: actor, what it was known by, from where, before and after
    #[command(after_help = "Examples:\n  probity audit\n  probity audit -n shop --for Probe/checkout\n  probity audit -o json")]
    Audit(AuditArgs),
    /// Alerts
    #[command(subcommand)]
    Alert(AlertCommand),
    /// Objectives and error budgets
    #[command(subcommand)]
    Slo(SloCommand),
    /// Run a scenario and measure what came of it
    #[command(subcommand, name = "gameday")]
    GameDay(GameDayCommand),
    /// End every fault now, and let none start until the halt is lifted
    #[command(after_help = "Examples:\n  probity halt --reason 'real incident'\n  probity halt lift")]
    Halt(HaltArgs),
    /// Discovered targets of probes
    #[command(subcommand)]
    Targets(TargetsCommand),
    /// Form and look after a cluster
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Certificates and tokens: who gets in
    #[command(subcommand)]
    Ca(CaCommand),
    /// Names for clusters, in your own file
    #[command(subcommand)]
    Context(ContextCommand),
    /// Stand in for Prometheus' blackbox_exporter: its blackbox.yml, paths, metrics and flags
    Blackbox(crate::cmd::blackbox::BlackboxArgs),
    /// Turn another tool's configuration into resources
    #[command(subcommand)]
    Import(ImportCommand),
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  probity up --demo\n  probity up -f probes.yaml --data-dir ./my-data")]
pub(crate) struct UpArgs {
    /// Also run a small shop with probes, an SLO, a pager and game days
    #[arg(long)]
    pub(crate) demo: bool,
    /// Apply these resources at start (file or directory; may be given again)
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,
    /// Where everything is kept
    #[arg(long, default_value = "./probity-data", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Port of the web page; the next free one when taken
    #[arg(long, default_value_t = 7600)]
    pub(crate) http_port: u16,
    /// Port for the other commands; the next free one when taken
    #[arg(long, default_value_t = 7601)]
    pub(crate) grpc_port: u16,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only check the configuration
    #[arg(long)]
    pub(crate) check: bool,
    /// Plain text instead of mutual TLS; refused unless every address is on loopback
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// A prober's: it can enrol itself.
#[derive(Debug, Args)]
pub(crate) struct ProberArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// File with a join token (`probity ca token --prober NAME`), or - for standard input; used once, when tls.dir has no certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  probity shop --http 127.0.0.1:18070 --tcp 127.0.0.1:18081 --dns 127.0.0.1:18053")]
pub(crate) struct ShopArgs {
    /// Address of the HTTP service
    #[arg(long, default_value = "127.0.0.1:18070", value_name = "ADDR")]
    pub(crate) http: std::net::SocketAddr,
    /// Address of the TCP service
    #[arg(long, default_value = "127.0.0.1:18081", value_name = "ADDR")]
    pub(crate) tcp: std::net::SocketAddr,
    /// Address of the DNS service (UDP and TCP)
    #[arg(long, default_value = "127.0.0.1:18053", value_name = "ADDR")]
    pub(crate) dns: std::net::SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct FilesArgs {
    /// File, directory (its *.yaml, *.yml, *.json) or - for standard input; may be given again
    #[arg(short, long, required = true, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// Check and show, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Delete resources that match --selector and are not in the files
    #[arg(long, requires = "selector")]
    pub(crate) prune: bool,
    /// Labels, as key=value,key2=value2
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Kind, singular or plural
    pub(crate) kind: String,
    /// Name; all when absent
    pub(crate) name: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Labels, as key=value,key2=value2
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Keep watching
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Kind
    pub(crate) kind: String,
    /// Name
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// Also forget what was measured (an SLO's ledger)
    #[arg(long)]
    pub(crate) purge: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Kind, or a field path such as probe.spec.http
    #[arg(required_unless_present = "schema")]
    pub(crate) path: Option<String>,
    /// Print the JSON Schema of all kinds
    #[arg(long)]
    pub(crate) schema: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Keep watching
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Only of this thing, as KIND/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    pub(crate) subject: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AlertCommand {
    /// Alerts that are pending or firing
    List,
    /// Firings, newest first
    History,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TargetsCommand {
    /// Take a set of targets that is held because it is more than 30 % smaller than the present one
    #[command(
        after_help = "Examples:\n  probity describe probe tills          says what is held, and which targets would go\n  probity targets accept tills -n shop"
    )]
    Accept {
        /// Name of the probe
        probe: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SloCommand {
    /// What an objective promises, when it pages, and what is left
    #[command(after_help = "Example:\n  probity slo explain shop-availability")]
    Explain {
        /// Name of the SLO
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GameDayCommand {
    /// Show what a run would do
    Plan(GameDayRunArgs),
    /// Run a scenario; Ctrl-C aborts it and waits for the verified undo
    #[command(
        after_help = "Examples:\n  probity gameday run shop-outage\n  probity gameday run shop-slow --set delay=500ms --yes\n\nExit codes: 0 passed, 1 failed, 4 aborted, 5 inconclusive"
    )]
    Run(GameDayRunArgs),
    /// Game days, newest first
    List,
    /// The report of a game day
    Report {
        /// Name, such as shop-outage-1
        name: String,
    },
    /// End a game day now and undo its faults
    Abort {
        /// Name, such as shop-outage-1
        name: String,
        /// Why
        #[arg(long, default_value = "asked by the operator")]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GameDayRunArgs {
    /// Name of the scenario
    pub(crate) scenario: String,
    /// A parameter, as name=value; may be given again
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) parameters: Vec<String>,
    /// Seed that picks the targets; the same seed picks the same ones
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Start it and return; it goes on in the cluster
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct HaltArgs {
    /// Why
    #[arg(long, default_value = "asked by the operator")]
    pub(crate) reason: String,
    #[command(subcommand)]
    pub(crate) command: Option<HaltCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HaltCommand {
    /// Let faults start again
    Lift,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Form the cluster from a coordinator's initialMembers; once
    #[command(after_help = "Example:\n  probity cluster init --server 127.0.0.1:7601 --tls-dir ./tls/admin")]
    Init,
    /// Take in a coordinator that runs with an empty data directory: as a learner, then as a voter when it has caught up
    #[command(
        after_help = "Example:\n  probity coordinator --config c4.yaml         on its host; no initialMembers, an empty dataDir\n  probity cluster join c4.example.com:7601"
    )]
    Join {
        /// gRPC address of the new member, host:port
        address: String,
        /// Return as soon as it is a learner
        #[arg(long)]
        no_wait: bool,
    },
    /// Put a new coordinator in the place of a lost one, in one step
    #[command(
        after_help = "Example:\n  probity cluster replace c2 c2.example.com:7601     c2 lost its disk, and runs with an empty one\n  probity cluster replace c2 c4.example.com:7601     c2 is gone, c4 takes its place"
    )]
    Replace {
        /// Name (or id) of the lost member
        member: String,
        /// gRPC address of the new one, host:port
        address: String,
        /// Return as soon as it is a learner
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove a member; the leader hands over first
    #[command(after_help = "Example:\n  probity cluster remove c4")]
    Remove {
        /// Name (or id) of the member
        member: String,
    },
    /// Hand leadership to a voter that has caught up
    #[command(after_help = "Examples:\n  probity cluster transfer        to the one that is furthest\n  probity cluster transfer c2")]
    Transfer {
        /// Name (or id) of the member
        member: Option<String>,
    },
    /// Write everything that is committed, as of one moment, to a file; the cluster works on meanwhile
    #[command(after_help = "Example:\n  probity cluster backup probity-$(date +%F).backup")]
    Backup {
        /// The file; it must not exist
        file: PathBuf,
    },
    /// Make a new cluster from a backup, on this host: fills the empty data directory of a configuration
    #[command(
        after_help = "Example:\n  probity cluster restore probity-2026-11-25.backup --config c1.yaml\n  probity coordinator --config c1.yaml\n  probity cluster join c2.example.com:7601     and so on; c2 with an empty data directory"
    )]
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// The members, their roles and how far each is behind; exit 1 when one lags or does not answer
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Make an authority, and a certificate directory for each part
    #[command(
        after_help = "Example:\n  probity ca init --dir ./tls --coordinator c1=127.0.0.1 --coordinator c2=127.0.0.1 --coordinator c3=127.0.0.1 \\\n      --prober edge-1 --prober edge-2 --admin me"
    )]
    Init(CaInitArgs),
    /// Make a token that lets somebody in: once to enrol, or to read over HTTP
    #[command(
        after_help = "Examples:\n  probity ca token --prober edge-3 > token\n  probity ca token --client anna=operator:shop,chaos:shop,viewer\n  probity ca token --coordinator c4=c4.example.com --valid 10m\n  probity ca token --read grafana=viewer:shop --valid 90d"
    )]
    Token(CaTokenArgs),
    /// Use a token: make a key here, and get its certificate from the cluster
    #[command(after_help = "Example:\n  probity ca enrol --token-file token --dir ./tls/me --server c1.example.com:7601")]
    Enrol(CaEnrolArgs),
    /// Sign the issuing certificate of a coordinator that joined, with the root key
    #[command(after_help = "Example:\n  probity ca sign --dir ./tls --name c4 --csr issuer.csr --out issuer.crt")]
    Sign(CaSignArgs),
    /// Refuse a name, a certificate's serial number or a token from now on
    #[command(after_help = "Examples:\n  probity ca revoke edge-3 --reason 'stolen'\n  probity ca revoke 5f0c2a...\n  probity ca revoke t-1a2b3c4d")]
    Revoke(CaRevokeArgs),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("who").required(true))]
pub(crate) struct CaTokenArgs {
    /// A prober's name
    #[arg(long, value_name = "NAME", group = "who")]
    pub(crate) prober: Option<String>,
    /// A coordinator, as name=host[,host...]: the names and addresses it is dialled by
    #[arg(long, value_name = "NAME=HOSTS", group = "who")]
    pub(crate) coordinator: Option<String>,
    /// A person or program, as name=role or name=role:namespace, several with commas; roles: viewer, operator, chaos, admin
    #[arg(long, value_name = "NAME=ROLES", group = "who")]
    pub(crate) client: Option<String>,
    /// Who reads over HTTP with the token itself, as name[=viewer:namespace,...]
    #[arg(long, value_name = "NAME[=ROLES]", group = "who")]
    pub(crate) read: Option<String>,
    /// How long the token is valid [default: 1h to enrol, 90d to read]
    #[arg(long, value_name = "DURATION")]
    pub(crate) valid: Option<String>,
    /// How long the certificate is valid; it renews itself [default: 30d]
    #[arg(long, value_name = "DURATION", conflicts_with = "read")]
    pub(crate) lifetime: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CaEnrolArgs {
    /// File with the token, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// Where ca.crt, tls.crt and tls.key are written
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CaSignArgs {
    /// Where ca.crt and ca.key are
    #[arg(long, default_value = "./tls", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The coordinator's name
    #[arg(long)]
    pub(crate) name: String,
    /// The request that `probity ca enrol` left: issuer.csr
    #[arg(long, value_name = "FILE")]
    pub(crate) csr: PathBuf,
    /// Where the certificate is written
    #[arg(long, default_value = "issuer.crt", value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// A domain or address that it may issue for; may be given again; without it any
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Vec<String>,
    /// Days that it is valid
    #[arg(long, default_value_t = 1_825)]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CaRevokeArgs {
    /// A name, a serial number or a token's id: long hexadecimal numbers, or such with colons, are taken for serial numbers
    pub(crate) what: String,
    /// It is a serial number, however short
    #[arg(long, conflicts_with = "name")]
    pub(crate) serial: bool,
    /// It is a name, whatever it looks like
    #[arg(long)]
    pub(crate) name: bool,
    /// Why, for the audit
    #[arg(long, default_value = "asked by the admin")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Only of this thing, as KIND/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    pub(crate) subject: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// The contexts, and which one is used
    List,
    /// Use a context from now on
    Use {
        /// Its name
        name: String,
    },
    /// Add a context of --server, --tls-dir, --namespace and a token
    #[command(after_help = "Example:\n  probity context add prod --server c1.example.com:7601,c2.example.com:7601 --tls-dir ./tls/me --namespace shop")]
    Add(ContextAddArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ContextAddArgs {
    /// Its name
    pub(crate) name: String,
    /// File with a token that reads, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CaInitArgs {
    /// Where to write: ca.crt, ca.key, and a directory for each part
    #[arg(long, default_value = "./tls", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A coordinator, as name=host[,host...]: the names and addresses it is dialled by
    #[arg(long, value_name = "NAME=HOSTS")]
    pub(crate) coordinator: Vec<String>,
    /// A prober's name
    #[arg(long, value_name = "NAME")]
    pub(crate) prober: Vec<String>,
    /// A person who may do everything
    #[arg(long, value_name = "NAME")]
    pub(crate) admin: Vec<String>,
    /// A person who may change resources
    #[arg(long, value_name = "NAME")]
    pub(crate) operator: Vec<String>,
    /// A person who may run game days
    #[arg(long, value_name = "NAME")]
    pub(crate) chaos: Vec<String>,
    /// A person or program with several roles, or in some namespaces, as name=role or name=role:namespace, with commas
    #[arg(long, value_name = "NAME=ROLES")]
    pub(crate) client: Vec<String>,
    /// A domain or address that coordinators may issue servers' certificates for; may be given again; without it any
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Vec<String>,
    /// A person who may only look
    #[arg(long, value_name = "NAME")]
    pub(crate) viewer: Vec<String>,
    /// Days that the certificates are valid
    #[arg(long, default_value_t = 365)]
    pub(crate) days: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Write a Probe for each module of a blackbox.yml
    Blackbox(crate::cmd::import::BlackboxImportArgs),
}
