//! The audit log as it is read, and how long it is kept.

use std::collections::BTreeSet;

use store_txn::{LogBounds, LogRecord, Read, Transaction, UnixMillis};

use crate::{
    Context, CoreError,
    audit::{self, AuditRow, EventType, LOG, records},
    cluster_config::Settings,
    page::{Page, PageRequest, Room},
};

/// Records that are read at a time.
const CHUNK: u64 = 256;
/// Records that are looked at for one page: a filter that matches few must not read all of them in one call.
const MAX_LOOKED_AT: u64 = 8192;
/// Most events in one filter.
const MAX_EVENTS: usize = 64;
/// Longest text that is looked for, in bytes.
const MAX_TEXT: usize = 256;
/// So many records are forgotten at once, or none: a record tells of it, which must not be what is forgotten next.
const TRIM_STEP: u64 = 1000;

/// Which records are wanted, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    events: BTreeSet<&'static str>,
    actor: String,
    from: Option<UnixMillis>,
    to: Option<UnixMillis>,
    text: String,
    from_index: u64,
}

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

impl Filter {
    /// Events, or families such as `user.*` (none: all); an actor, with or without its kind in front (empty: any); the
    /// first moment and the one after the last; a text in the target or a field, in any case (empty: any); the first
    /// index.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for events that there are not, and for what is too long.
    pub fn new(
        events: &[String],
        actor: String,
        (from, to): (Option<UnixMillis>, Option<UnixMillis>),
        text: &str,
        from_index: u64,
    ) -> Result<Self, CoreError> {
        if events.len() > MAX_EVENTS {
            return Err(CoreError::invalid("events", format!("at most {MAX_EVENTS}")));
        }
        let mut wanted = BTreeSet::new();
        for (index, name) in events.iter().enumerate() {
            let family = name.strip_suffix('*').filter(|front| front.ends_with('.'));
            let named = |event: &&EventType| match family {
                Some(front) => event.name().starts_with(front),
                None => event.name() == name,
            };
            let before = wanted.len();
            wanted.extend(EventType::ALL.iter().filter(named).map(|event| event.name()));
            if wanted.len() == before && !wanted.iter().any(|known| *known == name) {
                let reason = "there is no such event, nor a family such as `user.*` of this name";
                return Err(CoreError::invalid(format!("events[{index}]"), reason));
            }
        }
        if actor.len() > MAX_TEXT {
            return Err(CoreError::invalid("actor", format!("at most {MAX_TEXT} bytes")));
        }
        if text.len() > MAX_TEXT {
            return Err(CoreError::invalid("text", format!("at most {MAX_TEXT} bytes")));
        }
        Ok(Self { events: wanted, actor, from, to, text: text.to_lowercase(), from_index })
    }

    fn wants(&self, row: &AuditRow) -> bool {
        let actor = || {
            let name = row.actor.split_once(':').map_or("", |(_, name)| name);
            row.actor == self.actor || name == self.actor
        };
        let has_text = |text: &String| text.to_lowercase().contains(&self.text);
        (self.events.is_empty() || self.events.contains(row.event.as_str()))
            && (self.actor.is_empty() || actor())
            && (self.text.is_empty() || has_text(&row.target) || row.fields.values().any(has_text))
    }
}

/// A record and what it says.
pub type Entry = (LogRecord, AuditRow);

/// A page of the log. It may hold fewer than asked for, or none, and still not be the last one: each goes on where the one
/// before stopped looking.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token of another list; [`CoreError::Storage`].
pub fn query(
    state: &mut (impl Read + ?Sized),
    filter: &Filter,
    order: Order,
    page: &PageRequest,
) -> Result<Page<Entry>, CoreError> {
    let wanted = interval(state, filter)?;
    let after = page.after(|text| text.parse::<u64>().ok())?;
    let (mut items, mut room, mut looked_at) = (Vec::new(), Room::new(page.size), 0);
    // What has not been looked at yet.
    let (mut low, mut high) = (wanted.start, wanted.end);
    match (order, after) {
        (Order::Ascending, Some(last)) => low = low.max(last.saturating_add(1)),
        (Order::Descending, Some(last)) => high = high.min(last),
        (_, None) => {}
    }
    let mut last = None;
    while low < high && looked_at < MAX_LOOKED_AT {
        let count = CHUNK.min(high - low);
        let from = if order == Order::Ascending { low } else { high - count };
        let mut chunk = records(state, from, usize::try_from(count).unwrap_or(usize::MAX))?;
        if order == Order::Descending {
            chunk.reverse();
        }
        for (record, row) in chunk {
            let wanted = filter.wants(&row);
            if room.is_full() || (wanted && !room.takes(record.record.len())) {
                return Ok(Page { items, next: last.map(|last: u64| last.to_string()) });
            }
            last = Some(record.index);
            if wanted {
                items.push((record, row));
            }
        }
        match order {
            Order::Ascending => low += count,
            Order::Descending => high -= count,
        }
        looked_at += count;
    }
    let next = last.filter(|_| low < high).map(|last| last.to_string());
    Ok(Page { items, next })
}

/// The indices that a filter allows by time and by itself. Times never go back along the log.
fn interval(state: &mut (impl Read + ?Sized), filter: &Filter) -> Result<std::ops::Range<u64>, CoreError> {
    let bounds = state.log_bounds(LOG)?;
    let all = bounds.first..bounds.last + 1;
    let start = filter.from.map_or(Ok(all.start), |from| first_at(state, &all, from))?;
    let end = filter.to.map_or(Ok(all.end), |to| first_at(state, &all, to))?;
    Ok(start.max(filter.from_index)..end)
}

/// The first index whose record is not before a moment, by halving.
fn first_at(
    state: &mut (impl Read + ?Sized),
    all: &std::ops::Range<u64>,
    moment: UnixMillis,
) -> Result<u64, CoreError> {
    let (mut low, mut high) = (all.start, all.end);
    while low < high {
        let middle = low + (high - low) / 2;
        let before = state.log_records(LOG, middle, 1)?.first().is_some_and(|record| record.time < moment);
        if before { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// Where the log should begin, by what the cluster's configuration says; `None`: there is nothing to forget. It is
/// forgotten a thousand at a time, so up to a thousand more are kept.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn due(state: &mut (impl Read + ?Sized), settings: &Settings) -> Result<Option<u64>, CoreError> {
    let bounds = state.log_bounds(LOG)?;
    let all = bounds.first..bounds.last + 1;
    let by_count = settings.audit_max_events.map_or(all.start, |most| all.end.saturating_sub(most));
    let by_age = match settings.audit_retention_ms {
        Some(age) => {
            let moment = state.now().saturating_sub(age);
            first_at(state, &all, moment)?
        }
        None => all.start,
    };
    let before = by_count.max(by_age);
    Ok((before >= all.start.saturating_add(TRIM_STEP)).then_some(before))
}

/// Forgets records before an index, as many as one transaction may, and says so in the log.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn trim(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    before: u64,
) -> Result<LogBounds, CoreError> {
    let bounds = tx.log_bounds(LOG)?;
    let before = before.min(bounds.first.saturating_add(store_txn::MAX_TRIM));
    tx.trim(LOG, before);
    let fields = [("first", bounds.first.to_string()), ("before", before.to_string())];
    audit::append(tx, context, EventType::AuditTrim, "audit", &fields);
    Ok(bounds)
}

#[cfg(test)]
#[path = "audit_log_tests.rs"]
mod tests;
