//! AWS on this machine: moto, which answers as AWS's services do.

use std::{path::Path, process::Command, time::Duration};

use crate::{Port, Process, eventually, http, tools};

/// Python takes its time on a loaded machine.
const READY: Duration = Duration::from_secs(120);

/// A moto that runs, for all services on one port.
#[derive(Debug)]
pub struct Moto {
    port: Port,
    _process: Process,
}

impl Moto {
    /// Starts one; its log is in `dir`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn start(dir: &Path) -> Self {
        let port = Port::lease();
        let mut command = Command::new(tools::python());
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.number().to_string()]);
        let mut process = Process::spawn("moto", command, &dir.join("moto.log"));
        eventually("moto answers", READY, async || {
            process.assert_running();
            http::get(&port.address(), "/moto-api/").await.map(drop)
        })
        .await;
        Self { port, _process: process }
    }

    /// host:port of it.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// Makes a bucket.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn create_bucket(&self, name: &str) {
        let (status, body) = http::ask(&self.address(), "PUT", &format!("/{name}"), "").await.unwrap();
        assert_eq!(status, 200, "{body}");
    }

    /// Keys of a bucket's objects: at most a thousand.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub async fn keys(&self, bucket: &str) -> Vec<String> {
        let path = format!("/{bucket}?list-type=2");
        let (status, body) = http::get(&self.address(), &path).await.unwrap();
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("<IsTruncated>false"), "{body}");
        let keys = body.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| key.to_owned()).collect()
    }
}
