//! Messages of other members: whose they are, and what becomes of them.

use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;

use crate::Fatal;
use crate::convert;
use crate::interface::Outputs;
use crate::node::Replica;
use crate::sense::nonsense;
use crate::snapshot::{Source, Staged, Staging};

impl Replica {
    /// Takes a message. Whatever is not for this member, or makes no sense, is dropped.
    pub(crate) fn peer(&mut self, message: PeerMessage, out: &mut Outputs) -> Result<(), Fatal> {
        let identity = self.identity();
        if message.cluster_id != identity.cluster_id || message.to != identity.id {
            return Ok(());
        }
        if let Some(Peer::Raft(m)) = &message.message
            && !self.accepts(message.from, m, out)?
        {
            return Ok(());
        }
        let Some(raft) = &mut self.raft else { return Ok(()) };
        if raft.store().is_member(message.from) {
            self.heard.insert(message.from, self.ticks);
        }
        match message.message.clone() {
            Some(Peer::Persistence(report)) => self.on_persistence_report(message.from, &report),
            Some(Peer::ClockAsk(ask)) => self.on_clock_ask(message.from, &ask, out),
            Some(Peer::ClockTell(tell)) => self.on_clock_tell(message.from, &tell),
            Some(Peer::NotMember(told)) => return self.told_not_member(&told),
            Some(Peer::Raft(m)) if m.snapshot.is_some() => {
                let manifest = m.snapshot.unwrap_or_default();
                let same = self.staging.as_ref().is_some_and(|s| s.manifest == manifest);
                // What we have applied already needs no pulling; raft answers by itself.
                if manifest.index <= self.applied {
                    self.on_raft_message(message, out);
                } else if !same {
                    self.staging = Some(Staging::new(message, manifest));
                }
            }
            Some(Peer::Raft(_)) => self.on_raft_message(message, out),
            Some(Peer::Pull(pull)) => {
                let chunk = Source::answer(raft.mut_store().source.as_mut(), &pull)?;
                let reply = PeerMessage { cluster_id: message.cluster_id, from: message.to, to: message.from, message: Some(Peer::Chunk(chunk)) };
                out.messages.push(reply);
            }
            Some(Peer::Chunk(chunk)) => {
                let Some(staging) = &mut self.staging else { return Ok(()) };
                match staging.take(chunk) {
                    Staged::Waiting => {}
                    Staged::Broken => self.staging = None,
                    Staged::Whole(state, pieces) => {
                        let manifest = staging.manifest.clone();
                        let message = staging.message.clone();
                        self.staged = Some((manifest, state, pieces));
                        self.staging = None;
                        self.on_raft_message(message, out);
                    }
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Bytes from outside never reach raft unchecked; what it does not like, it drops.
    fn on_raft_message(&mut self, message: PeerMessage, out: &mut Outputs) {
        let Some(raft) = &mut self.raft else { return };
        let Some(Peer::Raft(m)) = message.message else { return };
        let Ok(m) = convert::from_peer(message.from, message.to, m) else { return };
        match nonsense(&raft.raft.raft_log, &m) {
            Some(what) => out.nonsense.push((m.from, what)),
            None => drop(raft.step(m)),
        }
    }
}
