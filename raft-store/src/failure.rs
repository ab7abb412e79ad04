//! Places around each write, sync, rename and callback at which a test ends the process or makes the disk fail. Outside
//! of tests, reaching one does nothing and costs nothing.

use crate::error::StoreError;

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident,)*) => {
        /// A place in the way of bytes to the disk.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$point,)*];

            /// Under which a test knows it.
            #[cfg(test)]
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$point => stringify!($point),)*
                }
            }
        }
    };
}

points! {
    /// A new data directory is about to get its owner.
    ClaimBeforeWrite,
    /// It has one.
    ClaimAfterWrite,
    /// The log writer is about to take entries into its batch.
    LogStageAppend,
    /// And a vote.
    LogStageVote,
    /// And a truncation.
    LogStageTruncate,
    /// And a purge.
    LogStagePurge,
    /// Its batch is about to be written and synced.
    LogBeforeWrite,
    /// The batch is on disk; nobody was told.
    LogAfterWrite,
    /// Those who waited were told.
    LogAfterCallbacks,
    /// What entries did is about to be written.
    ApplyBeforeWrite,
    /// It was written; nobody was told.
    ApplyAfterWrite,
    /// The file of a snapshot or backup was created.
    SnapshotCreated,
    /// It was written to its end, and not synced.
    SnapshotWritten,
    /// It was synced.
    SnapshotSynced,
    /// And so was the state that it shows.
    SnapshotStateSynced,
    /// Older snapshots were deleted.
    SnapshotOlderDeleted,
    /// A synced file is about to get its name.
    PublishBeforeRename,
    /// It has its name; the folder was not synced.
    PublishAfterRename,
    /// The folder was synced.
    PublishAfterSync,
    /// The file of a snapshot from a peer was opened.
    ReceiveOpened,
    /// Some bytes of it were written.
    ReceiveWritten,
    /// All were, and were synced.
    ReceiveSynced,
    /// The file is sound.
    ReceiveVerified,
    /// A table file of a snapshot's rows was written.
    InstallTableWritten,
    /// All were; the database is about to take them over.
    InstallBeforeIngest,
    /// It has; the state is still the old one.
    InstallAfterIngest,
    /// The state is the snapshot's; memory is not.
    InstallAfterSwitch,
    /// The file became this node's snapshot.
    InstallAfterKeep,
    /// A restored database is complete but for its owner and place.
    RestoreRowsWritten,
    /// It is complete, closed, and not in its place.
    RestoreBeforeRename,
    /// It is in its place; the folder was not synced.
    RestoreAfterRename,
}

/// Comes past a place. A test's schedule may end the process in here.
///
/// # Errors
/// The failure of the disk that a test asked for.
#[inline]
pub(crate) fn pass(point: Point) -> Result<(), StoreError> {
    #[cfg(test)]
    fail::fail_point!(point.name(), |_| Err(StoreError::io(format!("at {}", point.name()))(
        std::io::Error::other("injected failure")
    )));
    #[cfg(not(test))]
    let _ = point;
    Ok(())
}
