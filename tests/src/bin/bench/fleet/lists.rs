//! All nodes, page by page: as an admin reads them, by label, and as somebody whose roles allow a tenth of them; and as many
//! rows of the same size out of etcd.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use mezite_client::{Client, SessionSecret};
use mezite_e2e::{
    Cluster, call,
    fleet::{self, labels},
};
use mezite_proto::v1;
use prost::Message as _;
use tokio::task::JoinSet;

use super::{Fleet, usage::Usage};
use crate::{
    api::{PutRequest, RangeRequest, kv_client::KvClient},
    load::connect,
    report::{Report, mebibytes, millis, percentiles},
    system::{Kind, System},
};

/// Rows of a page.
const PAGE: u32 = 1000;
/// Times that a list is read; the first does not count.
const TIMES: usize = 3;
/// Writers that fill etcd.
const LANES: usize = 64;
/// Role and user that see what has the label `env=dev`: a tenth.
const NARROW: &str = "dev-login";

/// One walk through a list.
#[derive(Default)]
struct Walk {
    rows: usize,
    bytes: usize,
    pages: Vec<Duration>,
    time: Duration,
}

impl Walk {
    fn page(&mut self, begun: Instant, rows: usize, bytes: usize) {
        self.rows += rows;
        self.bytes += bytes;
        self.pages.push(begun.elapsed());
    }

    fn print(mut self, what: &str, cpu: Option<f64>, report: &mut Report) {
        let [p50, p99, longest] = percentiles(&mut self.pages);
        report.row(
            what,
            &[
                ("rows", Some(self.rows as f64)),
                ("pages", Some(self.pages.len() as f64)),
                ("MiB", Some(mebibytes(self.bytes as u64))),
                ("time ms", Some(millis(self.time))),
                ("page p50 ms", Some(p50)),
                ("page p99 ms", Some(p99)),
                ("longest ms", Some(longest)),
                ("CPU s", cpu),
            ],
        );
    }
}

/// Goes through the lists.
pub(crate) async fn run(fleet: &Fleet, alone: bool, report: &mut Report) -> Result<()> {
    let cluster = &fleet.cluster;
    let total = fleet.agents;
    let narrow = narrow(cluster).await?;
    let admin = cluster.session();
    let all = v1::ListNodesRequest::default();
    let rack_17 = [("rack".to_owned(), "r17".to_owned())].into();
    let one_rack = v1::ListNodesRequest { labels: rack_17, ..all.clone() };
    let online = v1::ListNodesRequest { online_only: true, ..all.clone() };
    let with = |key: &str, value: &str| (0..total).filter(|&number| labels(number)[key] == value).count();
    let (dev, rack) = (with("env", "dev"), with("rack", "r17"));
    for (what, session, request, wanted) in [
        ("all, admin", admin, &all, Some(total)),
        ("online, admin", admin, &online, None),
        ("rack=r17, admin", admin, &one_rack, Some(rack)),
        ("all, by a role for env=dev", &narrow, &all, Some(dev)),
    ] {
        for time in 0..TIMES {
            let before = Usage::of(fleet).await?;
            let walk = walk(&cluster.user_at(0, session), request).await?;
            ensure!(wanted.is_none_or(|wanted| wanted == walk.rows), "{what}: {} rows", walk.rows);
            let used = Usage::of(fleet).await?.since(&before);
            if time > 0 {
                walk.print(what, Some(used.nodes_cpu), report);
            }
        }
    }
    if !alone {
        etcd(fleet, report).await?;
    }
    Ok(())
}

async fn walk(client: &Client, request: &v1::ListNodesRequest) -> Result<Walk> {
    let (mut walk, begun) = (Walk::default(), Instant::now());
    let mut request = v1::ListNodesRequest { page_size: PAGE, ..request.clone() };
    loop {
        let asked = Instant::now();
        let reply = call!(client, list_nodes, request.clone())?;
        walk.page(asked, reply.nodes.len(), reply.encoded_len());
        request.page_token = reply.next_page_token;
        if request.page_token.is_empty() {
            walk.time = begun.elapsed();
            return Ok(walk);
        }
    }
}

/// Makes a user whose one role allows a login where `env=dev`, and logs it in.
async fn narrow(cluster: &Cluster) -> Result<SessionSecret> {
    let node_labels = [("env".to_owned(), v1::Strings { values: vec!["dev".into()] })].into();
    let allow = v1::RoleConditions { logins: vec!["root".into()], node_labels, ..Default::default() };
    let role = v1::Role { name: NARROW.into(), allow: Some(allow), ..Default::default() };
    call!(cluster.admin(), create_role, v1::CreateRoleRequest { role: Some(role.clone()) })?;
    cluster.add_user(NARROW, &[NARROW], &[]).await;
    Ok(cluster.session_of(NARROW).await)
}

/// As many rows with as many bytes, under the agents' ids, out of etcd.
async fn etcd(fleet: &Fleet, report: &mut Report) -> Result<()> {
    let request = v1::ListNodesRequest { page_size: 1, ..Default::default() };
    let sample = call!(fleet.cluster.admin(), list_nodes, request)?.nodes;
    let value = Bytes::from(sample.first().context("no node")?.encode_to_vec());
    let ids = fleet::online(&fleet.cluster).await?;
    let folder = tempfile::tempdir()?;
    let system = System::start(Kind::Etcd, folder.path()).await?;
    let channel = connect(&system.address(system.leader().await?), system.tls()).await?;
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (mut client, value) = (KvClient::new(channel.clone()), value.clone());
        let own: Vec<_> = ids.keys().skip(lane).step_by(LANES).map(|id| key(id)).collect();
        lanes.spawn(async move {
            for key in own {
                client.put(PutRequest { key, value: value.clone() }).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(done) = lanes.join_next().await {
        done??;
    }
    let mut client = KvClient::new(channel).max_decoding_message_size(64 << 20);
    for time in 0..TIMES {
        let (mut walk, begun) = (Walk::default(), Instant::now());
        let mut from = key("");
        loop {
            let asked = Instant::now();
            let (range_end, limit) = (Bytes::from_static(b"/nodes0"), i64::from(PAGE));
            let request = RangeRequest { key: from.clone(), range_end, limit, ..Default::default() };
            let reply = client.range(request).await?.into_inner();
            let bytes = reply.encoded_len();
            walk.page(asked, reply.kvs.len(), bytes);
            let Some(last) = reply.kvs.last().filter(|_| reply.more) else { break };
            from = [last.key.as_ref(), b"\0"].concat().into();
        }
        walk.time = begun.elapsed();
        ensure!(walk.rows == fleet.agents, "etcd has {} rows", walk.rows);
        if time > 0 {
            walk.print("all, etcd", None, report);
        }
    }
    Ok(())
}

fn key(id: &str) -> Bytes {
    format!("/nodes/{id}").into()
}
