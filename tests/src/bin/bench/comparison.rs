//! The rows of the comparison, and their table.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    disk, failover,
    load::{self, CONNECTIONS, Figures, KEYS, VALUE_BYTES, Work},
    system::{Kind, System, cpu_seconds},
};

/// What is to be measured.
pub(crate) struct Plan {
    /// Length of a row.
    pub(crate) time: Duration,
    /// Only rows whose name contains this.
    pub(crate) only: Option<String>,
    /// Without etcd.
    pub(crate) alone: bool,
    /// Where the data goes.
    pub(crate) dir: PathBuf,
    /// Times that a leader is killed.
    pub(crate) trials: usize,
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
    load: String,
}

/// The load of the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
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

/// For people.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn heading() {
    println!(
        "{:<20} {:<5} {:>9} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8} {:>6} {:>5} {:>6}",
        "row",
        "",
        "calls/s",
        "p50 ms",
        "p99 ms",
        "failed",
        "cpu us",
        "cli us",
        "fsync/k",
        "MiB",
        "load",
        "ratio"
    );
}

fn print(name: &str, system: &str, measured: &Measured, ratio: Option<f64>) {
    let figures = &measured.figures;
    println!(
        "{name:<20} {system:<5} {:>9.0} {:>8.2} {:>8.2} {:>6} {:>8.0} {:>8.0} {:>8.1} {:>6} {:>5} {:>6}",
        figures.rate,
        millis(figures.p50),
        millis(figures.p99),
        figures.failed,
        measured.members_cpu,
        measured.clients_cpu,
        measured.fsyncs,
        measured.resident >> 20,
        measured.load,
        ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
    );
}

/// Goes through the rows and prints them.
pub(crate) async fn run(plan: Plan) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("mezite-bench-").tempdir_in(&plan.dir)?;
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = scratch.path().join(name);
        fs::create_dir(&folder)?;
        Ok(folder)
    };
    let (p50, p99) = disk::sync_latency(scratch.path())?;
    println!("fdatasync of 4 KiB: p50 {:.2} ms, p99 {:.2} ms", millis(p50), millis(p99));
    println!(
        "values of {VALUE_BYTES} bytes, {KEYS} keys, at most {CONNECTIONS} connections, {} s a row, TLS 1.3 everywhere, \
         {} processors\n",
        plan.time.as_secs(),
        std::thread::available_parallelism()?,
    );
    if let Some(only) = &plan.only
        && !ROWS.iter().any(|row| row.contains(only.as_str()) || only.starts_with(row))
    {
        anyhow::bail!("no row's name contains `{only}`: there are {}", ROWS.join("; "));
    }
    let wanted = |name: &str| plan.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    heading();
    if wanted("bare") {
        let bare = System::start(Kind::Bare, &folder("bare")?).await?;
        for clients in CLIENTS {
            let name = format!("bare calls, {clients}");
            let row = Row { name, work: Work::Put, target: Target::Leader, clients };
            print(&row.name, "", &measure(&bare, &row, plan.time.min(Duration::from_secs(3))).await?, None);
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
            Some(etcd) => Some(measure(etcd, row, plan.time).await?),
            None => None,
        };
        let own = measure(&store, row, plan.time).await?;
        if let Some(other) = &other {
            print(&row.name, "etcd", other, None);
        }
        let ratio = other.map(|other| own.figures.rate / other.figures.rate);
        print(&row.name, "ours", &own, ratio);
    }
    if wanted("failover") {
        let other = match &mut etcd {
            Some(etcd) => Some(fail_over("etcd", etcd, plan.trials).await?),
            None => None,
        };
        let own = fail_over("ours", &mut store, plan.trials).await?;
        if let Some(other) = other {
            println!("{:<20} {:<5} p50 {:.2} of etcd's", "failover", "ratio", own / other);
        }
    }
    Ok(())
}

/// Kills leaders, prints how long nothing was written, and answers the median in seconds.
async fn fail_over(name: &str, system: &mut System, trials: usize) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..trials {
        times.push(failover::trial(system).await?.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let all: Vec<_> = times.iter().map(|time| format!("{time:.2}")).collect();
    println!("{:<20} {name:<5} p50 {median:.2} s of {}", "failover", all.join(", "));
    Ok(median)
}
