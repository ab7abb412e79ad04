//! What an operator sees of a call: what its log lines and its trace say of it, and what is counted.

use std::{
    borrow::Cow,
    fmt::Debug,
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Instant,
};

use tracing::{
    Span,
    field::{self, Empty},
};

/// Target of the spans of calls, which are there for any line that is logged: [`crate::logging`].
pub(crate) const TARGET: &str = "call";

/// An id that is a call's alone: its lines have it, and its caller is told.
#[must_use]
pub fn new_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// What log lines and traces say of a call: its method, id and client, who makes it and about which recording once that is
/// known, and how it ended.
#[derive(Debug, Clone)]
pub struct CallSpan {
    span: Span,
    /// A line has every record of a field, and a call is admitted more than once.
    caller: Arc<OnceLock<()>>,
}

impl CallSpan {
    /// A call of this method begins, with this id and from this address.
    #[must_use]
    pub fn begin(method: &'static str, request_id: &str, client: &str) -> Self {
        // An error's, so that the lines of the least that can be logged have it.
        let span = tracing::error_span!(
            target: TARGET,
            "call",
            method,
            request_id,
            client,
            caller = Empty,
            recording = Empty,
            code = Empty
        );
        Self { span, caller: Arc::default() }
    }

    /// It is known who makes the call.
    pub fn note(&self, caller: impl FnOnce() -> String) {
        if !self.span.is_disabled() {
            self.caller.get_or_init(|| {
                self.span.record("caller", caller());
            });
        }
    }

    /// The call has ended with this code of gRPC's: says so, and counts it. Returns how many milliseconds it took.
    pub fn end(&self, measured: Measured, code: impl Debug) -> f64 {
        self.span.record("code", field::debug(&code));
        measured.end(code)
    }
}

impl Deref for CallSpan {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.span
    }
}

/// A call that is being carried out. One that is dropped before its end was cancelled by its client.
#[derive(Debug)]
pub struct Measured {
    method: &'static str,
    begun: Instant,
    code: Cow<'static, str>,
}

impl Measured {
    /// A call begins.
    #[must_use]
    pub fn begin(method: &'static str) -> Self {
        Self { method, begun: Instant::now(), code: Cow::Borrowed("Cancelled") }
    }

    fn end(mut self, code: impl Debug) -> f64 {
        self.code = format!("{code:?}").into();
        (self.begun.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let code = std::mem::take(&mut self.code);
        metrics::counter!("grpc_server_handled_total", "method" => self.method, "code" => code).increment(1);
        metrics::histogram!("grpc_server_handling_seconds", "method" => self.method)
            .record(self.begun.elapsed().as_secs_f64());
    }
}
