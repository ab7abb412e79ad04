//! What others do with the same bytes on the same disk.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use mezite_e2e::{Port, Process, account, eventually, run};

use super::sender::Sender;
use crate::system::{cpu_seconds, cpu_seconds_of_all};

const LISTENING: Duration = Duration::from_secs(60);

/// Writes what is sent into a file.
pub(crate) fn write(file: &Path, sender: &Arc<Sender>, length: u64) -> Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    for piece in sender.payload(length).pieces() {
        out.write_all(&piece)?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// What it took: time, and processor time of whoever wrote, in seconds.
pub(crate) type Cost = (Duration, f64);

/// `dd conv=fsync` of a file, which the kernel has in memory.
pub(crate) fn dd(file: &Path, dir: &Path) -> Result<Cost> {
    let copy = dir.join("dd");
    let children = || Ok::<_, anyhow::Error>(cpu_seconds_of_all("self")? - cpu_seconds("self")?);
    let (before, begun) = (children()?, Instant::now());
    let mut command = Command::new("dd");
    command.arg(format!("if={}", file.display())).arg(format!("of={}", copy.display()));
    let _ = run(command.args(["bs=1M", "conv=fsync", "status=none"])).ok();
    let time = begun.elapsed();
    fs::remove_file(copy)?;
    Ok((time, children()? - before))
}

/// Threads that each make so many files of so many bytes, durable and under their names as a whole, one after the other.
pub(crate) fn files(dir: &Path, threads: usize, each: usize, bytes: usize) -> Result<Cost> {
    let (content, before, begun) = (vec![7; bytes], cpu_seconds("self")?, Instant::now());
    let make = |thread: usize| -> io::Result<()> {
        let folder = dir.join(thread.to_string());
        fs::create_dir_all(&folder)?;
        for number in 0..each {
            let (staged, name) = (folder.join("staged"), folder.join(number.to_string()));
            let mut file = File::create_new(&staged)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::hard_link(&staged, name)?;
            fs::remove_file(staged)?;
            File::open(&folder)?.sync_all()?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let make = &make;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || make(thread))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })?;
    Ok((begun.elapsed(), cpu_seconds("self")? - before))
}

/// `scp` of a file through an sshd of its own, and a sync of what came.
pub(crate) async fn scp(file: &Path, dir: &Path) -> Result<Cost> {
    let dir = dir.join("scp");
    fs::create_dir(&dir)?;
    for name in ["host", "key"] {
        let mut keygen = Command::new("ssh-keygen");
        let _ = run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name))).ok();
    }
    fs::copy(dir.join("key.pub"), dir.join("authorized"))?;
    let (port, show) = (Port::lease(), |name: &str| dir.join(name).display().to_string());
    fs::create_dir_all("/run/sshd")?;
    fs::write(
        dir.join("config"),
        format!(
            "ListenAddress 127.0.0.1\nPort {}\nPidFile none\nUsePAM no\nPermitRootLogin yes\nStrictModes no\n\
             HostKey {}\nAuthorizedKeysFile {}\nSubsystem sftp internal-sftp\n",
            port.number(),
            show("host"),
            show("authorized"),
        ),
    )?;
    let mut command = Command::new("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(dir.join("config"));
    let mut sshd = Process::spawn("sshd", command, &dir.join("log"));
    eventually("sshd listens", LISTENING, async || {
        sshd.assert_running();
        sshd.log().contains("Server listening").then_some(()).ok_or("not yet")
    })
    .await;
    let copy = dir.join("copy");
    let mut scp = Command::new("scp");
    scp.args(["-q", "-F", "none", "-P", &port.number().to_string(), "-i"]).arg(dir.join("key"));
    for option in
        ["BatchMode=yes", "IdentityAgent=none", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    {
        scp.args(["-o", option]);
    }
    scp.arg(file).arg(format!("{}@127.0.0.1:{}", account(), copy.display()));
    let begun = Instant::now();
    let _ = run(&mut scp).ok();
    let _ = run(Command::new("sync").arg(&copy)).ok();
    let time = begun.elapsed();
    fs::remove_file(copy)?;
    // The connection's own process ends after scp does.
    let server = sshd.id().to_string();
    eventually("sshd has no connection left", LISTENING, async || {
        let left = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap_or_default();
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    Ok((time, cpu_seconds_of_all(&server)?))
}
