//! `devices`: your own WebAuthn devices. They are registered on the cluster's web page: it takes a browser.

use anyhow::Result;
use clap::Subcommand;
use mezite_client::Retry;
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, list},
    context::Context,
    output::{self, Done, Row},
};

/// Commands on your own WebAuthn devices.
#[derive(Debug, Subcommand)]
pub(crate) enum Devices {
    /// List your devices
    Ls,
    /// Remove one of your devices, and end the other sessions that were made with it
    #[command(visible_alias = "delete")]
    Rm {
        /// Id of the device
        id: String,
    },
}

#[derive(Serialize)]
struct DeviceView {
    id: String,
    name: String,
    /// Whether it logs in without a name.
    passkey: bool,
    relying_party: String,
    created_at: Option<String>,
    /// Absent: never.
    last_used_at: Option<String>,
}

impl From<v1::WebAuthnDevice> for DeviceView {
    fn from(device: v1::WebAuthnDevice) -> Self {
        Self {
            created_at: output::time(device.created_at.as_ref()),
            last_used_at: output::time(device.last_used_at.as_ref()),
            id: device.device_id,
            name: device.name,
            passkey: device.passkey,
            relying_party: device.relying_party_id,
        }
    }
}

impl Row<6> for DeviceView {
    const HEADER: [&'static str; 6] = ["ID", "NAME", "KIND", "FOR", "REGISTERED", "LAST USED"];

    fn row(&self) -> [String; 6] {
        let kind = if self.passkey { "passkey" } else { "security key" };
        [
            self.id.clone(),
            self.name.clone(),
            kind.into(),
            self.relying_party.clone(),
            self.created_at.clone().unwrap_or_default(),
            self.last_used_at.clone().unwrap_or_default(),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: Devices) -> Result<()> {
    match command {
        Devices::Ls => ls(context).await,
        Devices::Rm { id } => rm(context, id).await,
    }
}

async fn ls(context: &Context) -> Result<()> {
    let client = context.user().await?;
    let devices = list!(client, list_web_authn_devices, devices, |page_token| {
        v1::ListWebAuthnDevicesRequest { page_size: mezite_client::PAGE_SIZE, page_token }
    })?;
    context.print_list(devices.into_iter().map(DeviceView::from).collect())
}

async fn rm(context: &Context, device_id: String) -> Result<()> {
    let client = context.user().await?;
    let request = v1::DeleteWebAuthnDeviceRequest { device_id: device_id.clone() };
    match call!(client, Retry::Idempotent, delete_web_authn_device, request) {
        Ok(v1::DeleteWebAuthnDeviceResponse {}) => {}
        Err(error) if error.repeated_with(Code::NotFound) => {}
        Err(error) => return Err(error.into()),
    }
    context.print(&Done::new(format!("Removed device {device_id}.")))
}
