//! Traces, for whoever collects them: the spans of calls, sent by OpenTelemetry's protocol (OTLP over gRPC). Without
//! `traces.endpoint` there are none, and nothing is spent on them.

use std::time::Duration;

use axum::http::Uri;
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanContext, TraceContextExt as _, TraceFlags, TraceState, TracerProvider as _},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider, Tracer},
};
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::config::ConfigError;

/// The longest that the end of a program waits for what was not sent yet.
const FLUSH: Duration = Duration::from_secs(2);

/// The header of W3C Trace Context.
const TRACEPARENT: &str = "traceparent";

/// Traces: the table `traces` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// Where they are sent: an OpenTelemetry collector's OTLP over gRPC, without TLS, such as `http://127.0.0.1:4317`: one on the same
    /// machine, which sends them on as it is told. Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// One in so many calls is traced. A caller that shows a certificate of the cluster decides by its own trace (W3C's
    /// `traceparent`) whether the call is; the trace of any other is linked to, and decides nothing. Default: 100.
    pub one_in: u32,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: None, one_in: 100 }
    }
}

impl TracesConfig {
    /// Whether traces can be sent there.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let is_usable = |endpoint: &String| {
            let url = endpoint.parse::<Uri>().unwrap_or_default();
            url.scheme_str() == Some("http") && url.host().is_some_and(|host| !host.is_empty())
        };
        match self.endpoint.as_ref().is_none_or(is_usable) {
            true => Ok(()),
            false => Err(ConfigError::value(
                "traces.endpoint",
                "must be http://HOST:PORT, of a collector that takes OTLP over gRPC without TLS",
            )),
        }
    }
}

/// Sends what is traced, until it is dropped.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Begins to export as the program `name`, if that is configured. Within a runtime.
///
/// # Errors
/// When the endpoint is no URL.
pub(crate) fn start(
    name: &'static str,
    config: &TracesConfig,
) -> Result<Option<Exporter>, ExporterBuildError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let ratio = Sampler::TraceIdRatioBased(1.0 / f64::from(config.one_in.max(1)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .with_resource(
            Resource::builder()
                .with_service_name(name)
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .build(),
        )
        .build();
    Ok(Some(Exporter(provider)))
}

impl Exporter {
    /// What hands spans over.
    pub(crate) fn layer<S>(&self) -> OpenTelemetryLayer<S, Tracer>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        OpenTelemetryLayer::new(self.0.tracer("mezite"))
    }
}

/// Has the span of a call belong to its caller's trace, where the caller says that it has one (W3C Trace Context): `header`
/// looks up what it sent. Of a caller that is known, the call is a part of the trace, and traced if that is. What a stranger
/// says decides nothing: its trace is linked to, should the call be traced.
pub fn continue_trace<'a>(
    span: &Span,
    known: impl FnOnce() -> bool,
    header: impl Fn(&str) -> Option<&'a str>,
) {
    if span.is_disabled() {
        return;
    }
    let context = TraceContextPropagator::new().extract(&Headers(header));
    let theirs = context.span().span_context().clone();
    if !theirs.is_valid() {
        return;
    }
    if known() {
        // Where nothing is exported there is nothing to be a part of.
        let _ = span.set_parent(context);
    } else {
        let (trace, parent) = (theirs.trace_id(), theirs.span_id());
        span.add_link(SpanContext::new(trace, parent, TraceFlags::default(), true, TraceState::NONE));
    }
}

/// Has whoever is called from within the current span continue its trace: `header` is told what to send.
pub fn pass_on(mut header: impl FnMut(&'static str, String)) {
    let context = Span::current().context();
    let ours = context.span().span_context().clone();
    if ours.is_valid() {
        header(TRACEPARENT, format!("00-{}-{}-{:02x}", ours.trace_id(), ours.span_id(), ours.trace_flags()));
    }
}

/// What a caller sent.
struct Headers<'a, F: Fn(&str) -> Option<&'a str>>(F);

impl<'a, F: Fn(&str) -> Option<&'a str>> Extractor for Headers<'a, F> {
    fn get(&self, key: &str) -> Option<&str> {
        let found: Option<&'a str> = (self.0)(key);
        found
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}
