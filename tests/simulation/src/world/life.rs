//! Simulates events of the host and the program: services start and stop, the host goes down and comes up, the program
//! restarts.

use portsentry::types::Timestamp;

use super::{Armed, World, next_tick};
use crate::chance::Chance;
use crate::daemon::Daemon;
use crate::detector::{Detector, settings};
use crate::host::{Service, TICK};
use crate::kernel::Kernel;

impl World {
    /// Starts or stops a service.
    pub fn set_up(&mut self, service: Service, up: bool) {
        if self.host.is_up(service.protocol, service.port) == up {
            return;
        }
        self.catch_up();
        let tick = next_tick(self.now);
        if !self.down {
            // The daemon has observed every second in which the service was up.
            let last = Timestamp::at(tick.since_origin() - TICK);
            self.daemon.see_out(last, &self.host);
        }
        self.host.set_up(service, up);
        self.daemon.look_at(tick);
        let state = if up { "starts" } else { "stops" };
        self.note(|| format!("the service on {:?} port {} {state}", service.protocol, service.port));
    }

    /// Turns the host off. It sends and receives nothing until [`World::boot`].
    pub fn power_off(&mut self) {
        self.catch_up();
        self.daemon.see_out(self.now, &self.host);
        self.down = true;
        self.host.stop_all();
        self.note(|| "the host goes down".to_owned());
    }

    /// Boots the host with the program and without any service. Bans are restored from the ledger, which is empty if
    /// the host was reinstalled.
    pub fn boot(&mut self, keeps_ledger: bool) {
        self.down = false;
        let bans = if keeps_ledger { self.kernel.bans(self.now) } else { Vec::new() };
        self.kernel = Kernel::new(self.now, &settings(&self.options.engine).1, self.options.kernel);
        for (target, left) in bans {
            self.kernel.block(self.now, target, left);
        }
        self.start_program(true, keeps_ledger);
        let state = if keeps_ledger { "" } else { ", installed anew" };
        self.note(|| format!("the host is up{state}, and the program runs"));
    }

    /// Restarts the program, as an upgrade does. The kernel's table remains.
    pub fn restart_program(&mut self) {
        if self.down {
            return;
        }
        self.catch_up();
        self.daemon.see_out(self.now, &self.host);
        self.kernel.forget_all();
        self.start_program(false, true);
        self.note(|| "the program restarts".to_owned());
    }

    fn start_program(&mut self, booted: bool, keeps_ledger: bool) {
        (self.review_at, self.armed) = (None, Armed::never(&self.options));
        let empty = Daemon::new(self.now, self.options.daemon, self.options.pace, &self.host, 0);
        let before = std::mem::replace(&mut self.daemon, empty);
        self.daemon = Daemon::restarted(self.now, before, booted, keeps_ledger, &self.host);
        let key = Chance::new(self.seed, "boot", self.step).key();
        self.detector = Detector::new(self.options.engine, key, &self.host, self.daemon.services());
        self.daemon.brief(self.now, &mut self.detector);
        self.kernel.allow(self.detector.allowed());
        for (target, left) in self.kernel.bans(self.now) {
            self.detector.adopt(self.now, target, left);
        }
        self.waiting = false;
        if let Some(until) = self.daemon.settles_until(self.now) {
            self.detector.settle(until);
            self.waiting = true;
        }
    }
}
