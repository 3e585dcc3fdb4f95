//! What the host's operators and programs do: restarts, maintenance, reboots.

use portsentry::types::Timestamp;

use crate::chance::{Chance, days, hours, minutes, seconds};
use crate::host::Service;
use crate::world::{Actor, Role, World};

pub(super) fn populate(world: &mut World) {
    let pace = world.pace();
    let plans = [
        // A certificate is renewed, a package upgraded: one service, for a moment.
        (Kind::Restart, days(2)),
        // All of them, one after the other: a library was upgraded.
        (Kind::RestartAll, days(14)),
        // A service is stopped on purpose, for longer than a client's patience.
        (Kind::Maintenance, days(45)),
        (Kind::Reboot, days(30)),
    ];
    for (kind, mean) in plans {
        let mut chance = world.chance(kind.name(), 0);
        let first = world.now.after(chance.after(mean / pace));
        let operation = Operation { kind, mean: mean / pace, chance, plan: Vec::new() };
        world.spawn(Role::Backstage, first, operation);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Restart,
    RestartAll,
    Maintenance,
    Reboot,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::RestartAll => "restart of all",
            Self::Maintenance => "maintenance",
            Self::Reboot => "reboot",
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Stop(Service),
    Start(Service),
    PowerOff,
    Boot,
}

struct Operation {
    kind: Kind,
    mean: std::time::Duration,
    chance: Chance,
    /// What is still to be done, the next step last.
    plan: Vec<(Timestamp, Step)>,
}

impl Operation {
    fn make_plan(&mut self, world: &World) {
        let chance = &mut self.chance;
        let mut services = world.host.profile.services.clone();
        chance.shuffle(&mut services);
        let mut at = world.now;
        let plan = &mut self.plan;
        match self.kind {
            Kind::Restart | Kind::RestartAll => {
                services.truncate(if self.kind == Kind::Restart { 1 } else { usize::MAX });
                for service in services {
                    plan.push((at, Step::Stop(service)));
                    at = at.after(chance.between(seconds(1), seconds(45)));
                    plan.push((at, Step::Start(service)));
                }
            }
            Kind::Maintenance => {
                services.truncate(1 + usize::try_from(chance.below(3)).unwrap_or(0));
                let end = at.after(chance.between(minutes(10), hours(4)));
                plan.extend(services.iter().map(|service| (at, Step::Stop(*service))));
                plan.extend(services.iter().map(|service| (end, Step::Start(*service))));
            }
            Kind::Reboot => {
                plan.push((at, Step::PowerOff));
                let up = at.after(chance.between(seconds(20), minutes(5)));
                plan.push((up, Step::Boot));
                // Databases and Java take their time.
                for service in services {
                    let slow = if chance.is(0.2) { minutes(6) } else { seconds(20) };
                    plan.push((up.after(chance.between(seconds(1), slow)), Step::Start(service)));
                }
            }
        }
        plan.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    }
}

impl Actor for Operation {
    fn act(&mut self, world: &mut World) -> Option<Timestamp> {
        if self.plan.is_empty() {
            self.make_plan(world);
        }
        while let Some((_, step)) = self.plan.pop_if(|(at, _)| *at <= world.now) {
            match step {
                Step::Stop(service) => world.set_up(service, false),
                Step::Start(service) => world.set_up(service, true),
                Step::PowerOff => world.power_off(),
                Step::Boot => world.boot(),
            }
        }
        let next = self.plan.last().map(|(at, _)| *at);
        Some(next.unwrap_or_else(|| world.now.after(self.chance.after(self.mean))))
    }
}
