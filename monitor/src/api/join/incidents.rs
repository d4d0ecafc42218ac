//! Incidents that wait until the controller takes them. Pure.

use std::collections::VecDeque;

use monitor_api::v1::join_request::Incident;

/// Incidents that wait; of more the oldest goes, which is counted.
pub(super) const INCIDENTS_MAX: usize = 64;

/// Incidents in the order in which they came, each with its number.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    waiting: VecDeque<(u64, Incident)>,
    newest: u64,
    lost: u64,
}

impl Incidents {
    /// Keeps another one.
    pub(super) fn add(&mut self, incident: Incident) {
        if self.waiting.len() >= INCIDENTS_MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.newest += 1;
        self.waiting.push_back((self.newest, incident));
    }

    /// The first with a higher number than `told`, and its number.
    pub(super) fn next(&self, told: u64) -> Option<(u64, Incident)> {
        let next = self.waiting.iter().find(|(number, _)| *number > told);
        next.cloned()
    }

    /// Forgets that of an alert.
    pub(super) fn taken(&mut self, alert: &str) {
        let is_other = |incident: &Incident| {
            let told = incident.alert.as_ref();
            told.is_none_or(|told| told.id != alert)
        };
        self.waiting.retain(|(_, incident)| is_other(incident));
    }

    /// How many wait, and how many went before they were taken.
    pub(super) fn counts(&self) -> (u64, u64) {
        let waiting = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        (waiting, self.lost)
    }
}

#[cfg(test)]
mod tests {
    use monitor_api::v1::Alert;

    use super::*;

    fn incident(id: usize) -> Incident {
        Incident {
            alert: Some(Alert {
                id: id.to_string(),
                ..Alert::default()
            }),
            respond: "auto".to_owned(),
            rule: "p.r".to_owned(),
        }
    }

    #[test]
    fn an_incident_is_kept_until_it_is_taken() {
        let mut incidents = Incidents::default();
        for id in 1..=3 {
            incidents.add(incident(id));
        }
        assert_eq!(incidents.next(0), Some((1, incident(1))));
        assert_eq!(incidents.next(1), Some((2, incident(2))));
        assert_eq!(incidents.next(3), None);
        incidents.taken("1");
        incidents.taken("of nobody");
        // A next conversation begins anew.
        assert_eq!(incidents.next(0), Some((2, incident(2))));
        assert_eq!(incidents.counts(), (2, 0));
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut incidents = Incidents::default();
        for id in 0..INCIDENTS_MAX + 3 {
            incidents.add(incident(id));
        }
        assert_eq!(incidents.counts(), (64, 3));
        assert_eq!(incidents.next(0), Some((4, incident(3))));
    }
}
