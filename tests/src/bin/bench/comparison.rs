//! The rows of the comparison, and their table.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use mezite_e2e::percentile;

use crate::{
    disk, failover,
    load::{self, CONNECTIONS, Figures, KEYS, VALUE_BYTES, Work},
    report::{Report, load_average, mebibytes, millis},
    system::{Kind, System, cpu_seconds},
};

/// What is to be measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Length of each row, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only the rows whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Leaves etcd out.
    #[arg(long)]
    alone: bool,
    /// Folder for the data: on the disk that is to be measured. Default: the temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Times that a leader is killed.
    #[arg(long, default_value_t = 5)]
    trials: usize,
}

/// Clients at once.
const CLIENTS: [usize; 4] = [1, 64, 256, 1000];
/// How the names of rows begin.
const ROWS: [&str; 5] = ["bare calls", "writes", "reads, leader", "reads, all", "failover"];

/// Which members the clients call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Leader,
    All,
}

struct Row {
    name: String,
    work: Work,
    target: Target,
    clients: usize,
}

fn rows() -> Vec<Row> {
    let kinds = [
        ("writes", Work::Put, Target::Leader),
        ("reads, leader", Work::Get, Target::Leader),
        ("reads, all", Work::Get, Target::All),
    ];
    let rows = kinds.into_iter().flat_map(|(what, work, target)| {
        CLIENTS.map(|clients| Row { name: format!("{what}, {clients}"), work, target, clients })
    });
    rows.collect()
}

/// What a row came to on one system.
struct Measured {
    figures: Figures,
    /// Processor time of the members and of the clients, in microseconds a call.
    members_cpu: f64,
    clients_cpu: f64,
    /// Syncs of the leader's log for a thousand calls.
    fsyncs: f64,
    resident: u64,
    load: f64,
}

async fn measure(system: &System, row: &Row, time: Duration) -> Result<Measured> {
    let load = load_average();
    let leader = system.leader().await?;
    let addresses = match row.target {
        Target::Leader => vec![system.address(leader)],
        Target::All => system.addresses(),
    };
    let mut before = None;
    let begin = async || {
        before = Some((system.used(leader).await?, cpu_seconds("self")?, Instant::now()));
        Ok(())
    };
    let figures = load::run(&addresses, system.tls(), row.clients, row.work, time, begin).await?;
    let (used, own, began) = before.unwrap_or_else(|| (Default::default(), 0.0, Instant::now()));
    let after = system.used(leader).await?;
    let own = cpu_seconds("self")? - own;
    // The last calls may end a little after the time that counts.
    let calls = (figures.rate * began.elapsed().as_secs_f64()).max(1.0);
    Ok(Measured {
        members_cpu: (after.cpu - used.cpu) * 1e6 / calls,
        clients_cpu: own * 1e6 / calls,
        fsyncs: (after.fsyncs - used.fsyncs) * 1000.0 / calls,
        resident: system.resident(),
        load,
        figures,
    })
}

fn print(report: &mut Report, name: &str, system: &str, measured: &Measured, ratio: Option<f64>) {
    let figures = &measured.figures;
    report.row(
        format!("{name}: {system}"),
        &[
            ("calls/s", Some(figures.rate)),
            ("p50 ms", Some(millis(figures.p50))),
            ("p99 ms", Some(millis(figures.p99))),
            ("failed", Some(figures.failed as f64)),
            ("cpu us", Some(measured.members_cpu)),
            ("client us", Some(measured.clients_cpu)),
            ("fsync/1000", Some(measured.fsyncs)),
            ("MiB", Some(mebibytes(measured.resident))),
            ("load", Some(measured.load)),
            ("of etcd", ratio),
        ],
    );
}

/// Goes through the rows and prints them.
pub(crate) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    report.part("store")?;
    let dir = plan.dir.clone().unwrap_or_else(env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("mezite-bench-").tempdir_in(dir)?;
    let time = Duration::from_secs(plan.seconds);
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = scratch.path().join(name);
        fs::create_dir(&folder)?;
        Ok(folder)
    };
    let (p50, p99) = disk::sync_latency(scratch.path())?;
    report.note(&format!(
        "values of {VALUE_BYTES} bytes, {KEYS} keys, at most {CONNECTIONS} connections, {} s a row, TLS 1.3 everywhere",
        plan.seconds,
    ));
    report.row("fdatasync of 4 KiB", &[("p50 ms", Some(millis(p50))), ("p99 ms", Some(millis(p99)))]);
    if let Some(only) = &plan.only
        && !ROWS.iter().any(|row| row.contains(only.as_str()) || only.starts_with(row))
    {
        anyhow::bail!("no row's name contains `{only}`: there are {}", ROWS.join("; "));
    }
    let wanted = |name: &str| plan.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    if wanted("bare") {
        let bare = System::start(Kind::Bare, &folder("bare")?).await?;
        for clients in CLIENTS {
            let name = format!("bare calls, {clients}");
            let row = Row { name, work: Work::Put, target: Target::Leader, clients };
            let measured = measure(&bare, &row, time.min(Duration::from_secs(3))).await?;
            print(report, &row.name, "gRPC", &measured, None);
        }
    }
    let mut etcd = match plan.alone {
        true => None,
        false => Some(System::start(Kind::Etcd, &folder("etcd")?).await?),
    };
    let mut store = System::start(Kind::Store, &folder("store")?).await?;
    for system in etcd.iter().chain([&store]) {
        load::fill(&system.address(system.leader().await?), system.tls()).await?;
    }
    for row in rows().iter().filter(|row| wanted(&row.name)) {
        let other = match &etcd {
            Some(etcd) => Some(measure(etcd, row, time).await?),
            None => None,
        };
        let own = measure(&store, row, time).await?;
        if let Some(other) = &other {
            print(report, &row.name, "etcd", other, None);
        }
        let ratio = other.map(|other| own.figures.rate / other.figures.rate);
        print(report, &row.name, "ours", &own, ratio);
    }
    if wanted("failover") {
        let other = match &mut etcd {
            Some(etcd) => Some(fail_over(etcd, plan.trials).await?),
            None => None,
        };
        let own = fail_over(&mut store, plan.trials).await?;
        let mut row = |system: &str, [p50, longest]: [f64; 2], ratio| {
            let figures = [("p50 s", Some(p50)), ("longest s", Some(longest)), ("of etcd", ratio)];
            report.row(format!("failover: {system}, {} times", plan.trials), &figures);
        };
        if let Some(other) = other {
            row("etcd", other, None);
        }
        row("ours", own, other.map(|other| own[0] / other[0]));
    }
    Ok(())
}

/// Kills leaders: how long nothing was written, in seconds, the median and the longest.
async fn fail_over(system: &mut System, trials: usize) -> Result<[f64; 2]> {
    let mut times = Vec::new();
    for _ in 0..trials {
        times.push(failover::trial(system).await?.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok([50, 100].map(|percent| percentile(&times, percent).unwrap_or(f64::NAN)))
}
