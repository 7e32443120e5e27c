//! The replicated state: what every coordinator agrees on at an index of the log.

use probity_proto::v1::*;

use crate::table::{Change, Key, Record, Table, join, number_key, pair_key};

/// A row of the store could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A table number that this version does not know.
    #[error("row of an unknown table {0}: written by a newer version of probity")]
    UnknownTable(u32),
    /// Bytes that are no record of their table.
    #[error("row {key:?} of table {table} is no valid record")]
    Decode {
        /// Table number.
        table: u32,
        /// Key of the row.
        key: String,
        /// What prost says.
        #[source]
        source: prost::DecodeError,
    },
}

macro_rules! state {
    ($($(#[$doc:meta])* $field:ident : $record:ident = $number:literal, key $key:expr;)*) => {
        /// Everything the cluster knows. Changed only by [`crate::apply`].
        #[derive(Debug, Clone, Default)]
        pub struct State {
            $($(#[$doc])* pub $field: Table<$record>,)*
            pub(crate) index: crate::index::Index,
            pub(crate) desired: crate::desired::Log,
            pub(crate) placed: std::collections::BTreeMap<String, crate::placement::Placed>,
            /// Checks that the command at hand has placed.
            pub(crate) placed_now: usize,
            /// Whether it does a piece of the pass.
            pub(crate) pass_goes_on: bool,
            /// Checks on which a voice turned in the command at hand.
            pub(crate) turned: std::collections::BTreeSet<String>,
            hash: u64,
            /// What the tables that are written already add to it.
            round_sum: u64,
        }

        $(impl Record for $record {
            const TABLE: u32 = $number;
            fn key(&self) -> Key {
                let key: fn(&$record) -> Key = $key;
                key(self)
            }
        })*

        impl State {
            /// Begins a round of writing: the changes since the last one began, or every row, as of now, in pieces by [`State::drain`].
            /// What is left of an earlier round must have been drained.
            pub fn freeze(&mut self, all: bool) {
                $(self.$field.freeze(all);)*
                self.round_sum = 0;
            }

            /// The next piece of the round, of about `bytes`, in (table, key) order except for rows that have changed since, and whether it was the
            /// last one: that brings [`State::hash`] up to date.
            pub fn drain(&mut self, bytes: usize) -> (Vec<Change>, bool) {
                let (mut left, mut out) = (bytes, Vec::new());
                $(match self.$field.drain(&mut left, &mut out) {
                    Some(sum) => self.round_sum = self.round_sum.wrapping_add(sum),
                    None => return (out, false),
                })*
                self.hash = self.hash.wrapping_add(std::mem::take(&mut self.round_sum));
                (out, true)
            }

            /// The changes since the last round, all at once.
            pub fn take_changes(&mut self) -> Vec<Change> {
                self.freeze(false);
                self.drain(usize::MAX).0
            }

            /// Whether there is a row: of an unknown table, none.
            pub fn holds(&self, table: u32, key: &str) -> bool {
                match table {
                    $($number => self.$field.holds(key),)*
                    _ => false,
                }
            }

            /// Loads one stored row.
            pub fn load(&mut self, table: u32, key: &str, value: &[u8]) -> Result<(), LoadError> {
                let hash = match table {
                    $($number => self.$field.load(key, value),)*
                    other => return Err(LoadError::UnknownTable(other)),
                }
                .map_err(|source| LoadError::Decode { table, key: key.to_owned(), source })?;
                self.hash = self.hash.wrapping_add(hash);
                self.index_loaded(table, key);
                Ok(())
            }

            /// Every row, encoded, in (table, key) order: what a snapshot and a backup hold.
            pub fn rows(&self) -> impl Iterator<Item = (u32, Key, Vec<u8>)> + '_ {
                let rows: Box<dyn Iterator<Item = (u32, Key, Vec<u8>)> + '_> = Box::new(std::iter::empty());
                $(let rows = Box::new(rows.chain(
                    self.$field.iter().map(|r| ($number, r.key(), prost::Message::encode_to_vec(r))),
                ));)*
                rows
            }
        }
    };
}

// Table numbers and key shapes are for ever.
state! {
    /// One row: identity, log time, counters, halt.
    meta: MetaRecord = 1, key |_| Key::default();
    /// The coordinators.
    members: MemberRecord = 2, key |r| number_key(r.id);
    /// What operators applied.
    resources: Resource = 3, key |r| resource_key(&r.kind, &r.namespace, &r.name);
    /// The fleet.
    probers: ProberRecord = 4, key |r| Key::from(&r.name);
    /// One per target of a probe.
    checks: CheckRecord = 5, key |r| Key::from(&r.check);
    /// One prober's part in a check.
    voters: VoterRecord = 6, key |r| pair_key(&r.check, &r.prober);
    /// Who runs what, from when until when.
    assignments: AssignmentRecord = 7, key |r| number_key(r.id);
    /// Integer counts behind each SLO.
    ledgers: LedgerRecord = 8, key |r| join([&r.namespace, &r.slo], '/');
    /// One per SLO and rule.
    alerts: AlertRecord = 9, key |r| join([&r.namespace, &r.slo, &r.rule], '/');
    /// Firings, newest kept.
    episodes: EpisodeRecord = 10, key |r| Key::from(&r.id);
    /// What each receiver should know.
    outbox: OutboxRecord = 11, key |r| pair_key(&r.episode, &r.receiver);
    /// Runs of scenarios, newest kept.
    game_days: GameDayRecord = 12, key |r| r.plan.as_ref().map(|p| join([&p.namespace, &p.name], '/')).unwrap_or_default();
    /// Disturbances wanted, active or ended.
    faults: FaultRecord = 13, key |r| Key::from(&r.id);
    /// What happened, newest kept.
    events: EventRecord = 14, key |r| number_key(r.sequence);
    /// Who changed what, newest kept.
    audit: AuditRecord = 15, key |r| number_key(r.sequence);
    /// Answers to request ids.
    requests: RequestRecord = 16, key |r| Key::from(&r.id);
    /// Who may get in with what secret.
    tokens: TokenRecord = 40, key |r| Key::from(&r.id);
    /// Who may not any more.
    revocations: RevocationRecord = 41, key |r| Key::from(&r.subject);
    /// What was discovered of a probe's targets.
    discoveries: DiscoveryRecord = 70, key |r| join([&r.namespace, &r.probe], '/');
    /// Accounts of targets that are gone from their probes.
    retired_checks: RetiredCheckRecord = 71, key |r| Key::from(&r.check);
    /// Probers that are gone, newest kept.
    departed: DepartedProberRecord = 73, key |r| Key::from(&r.name);
    /// One row at most: what a change of the fleet has not moved yet.
    passes: PlacementPassRecord = 72, key |_| Key::default();
}

/// The key of a resource.
pub fn resource_key(kind: &str, namespace: &str, name: &str) -> Key {
    join([kind, namespace, name], '/')
}

impl State {
    /// A state before the cluster was initialised.
    pub fn new() -> Self {
        let mut state = State::default();
        state.meta.put(MetaRecord::default());
        state
    }

    /// Identity, log time and counters.
    pub fn meta(&self) -> &MetaRecord {
        self.meta.get("").expect("State::new and every stored state hold the meta row")
    }

    /// The same, to be changed.
    pub fn meta_mut(&mut self) -> &mut MetaRecord {
        self.meta.get_mut("").expect("State::new and every stored state hold the meta row")
    }

    /// Log time in microseconds since the Unix epoch; never goes back.
    pub fn now(&self) -> i64 {
        self.meta().time_us
    }

    fn index_loaded(&mut self, table: u32, key: &str) {
        match table {
            MetaRecord::TABLE => self.desired = crate::desired::Log::from_revision(self.meta().desired_revision),
            AssignmentRecord::TABLE => self.assignments.get(key).into_iter().for_each(|a| self.index.add(a)),
            ProberRecord::TABLE => self.probers.get(key).into_iter().for_each(|p| self.index.add_prober(p)),
            LedgerRecord::TABLE => self.ledgers.get(key).into_iter().for_each(|l| self.index.add_ledger(l)),
            Resource::TABLE => self.resources.get(key).into_iter().for_each(|r| self.index.add_resource(r)),
            RequestRecord::TABLE => self.requests.get(key).into_iter().for_each(|r| self.index.add_request(r)),
            _ => {}
        }
    }

    /// The state hash, as of the last round of writing that is over: equal at equal index on every replica.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
