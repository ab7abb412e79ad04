//! What others do with the same bytes on the same disk.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use mezite_e2e::{Port, Process, account, eventually, run};

use super::sender::Sender;

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

/// `dd conv=fsync` of a file, which the kernel has in memory.
pub(crate) fn dd(file: &Path, dir: &Path) -> Result<Duration> {
    let copy = dir.join("dd");
    let begun = Instant::now();
    let mut command = Command::new("dd");
    command.arg(format!("if={}", file.display())).arg(format!("of={}", copy.display()));
    let _ = run(command.args(["bs=1M", "conv=fsync", "status=none"])).ok();
    let time = begun.elapsed();
    fs::remove_file(copy)?;
    Ok(time)
}

/// `scp` of a file through an sshd of its own, and a sync of what came.
pub(crate) async fn scp(file: &Path, dir: &Path) -> Result<Duration> {
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
    Ok(time)
}
