//! Random scenes: the invariants hold after every step, and nothing that was sent is lost or doubled.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Send(u32, Option<u8>),
    Block(u8, u64),
    Handle(u32, bool),
    Next(u8),
    Add(u8),
    Remove(u8),
    Stop(bool),
    Suspend(u8, u64),
    Take(u8, u64),
}

fn masks() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(!0), any::<u64>(), (0..64_u32).prop_map(|bit| 1 << bit)]
}

fn ops() -> impl Strategy<Value = Op> {
    let signal = prop_oneof![Just(10_u32), Just(12), Just(11), Just(18), Just(34), Just(35), 1..65_u32];
    prop_oneof![
        6 => (signal.clone(), prop::option::of(0..4_u8)).prop_map(|(signal, to)| Op::Send(signal, to)),
        3 => (0..4_u8, masks()).prop_map(|(thread, mask)| Op::Block(thread, mask)),
        1 => (signal, any::<bool>()).prop_map(|(signal, on)| Op::Handle(signal, on)),
        6 => (0..4_u8).prop_map(Op::Next),
        1 => (1..4_u8).prop_map(Op::Add),
        1 => (1..4_u8).prop_map(Op::Remove),
        1 => any::<bool>().prop_map(Op::Stop),
        1 => (0..4_u8, masks()).prop_map(|(thread, mask)| Op::Suspend(thread, mask)),
        1 => (0..4_u8, masks()).prop_map(|(thread, mask)| Op::Take(thread, mask)),
    ]
}

proptest! {
    /// All but SIGKILL and SIGSTOP are handled, so each realtime signal that was sent comes out exactly once, in its order.
    #[test]
    fn nothing_is_lost_and_nothing_comes_twice(ops in prop::collection::vec(ops(), 1..120)) {
        let mut group = ThreadGroup::new(MAIN, 1000, false).unwrap();
        catch_all(&mut group);
        let mut threads = vec![MAIN];
        let mut sent: BTreeMap<(u32, Option<Tid>), Vec<u32>> = BTreeMap::new();
        let mut serial = 0;
        let mut nobody = |_: Tid, _: Wake| {};
        for op in ops {
            let tid = |thread: u8| MAIN + u32::from(thread);
            match op {
                // A thread that stopped does nothing until it goes on.
                Op::Next(thread) | Op::Block(thread, _) | Op::Suspend(thread, _) | Op::Take(thread, _)
                    if group.is_stopped(tid(thread)) => {}
                // A run of the model ends with the process.
                Op::Send(9, _) | Op::Send(19..=22, _) => {}
                Op::Send(number, to) => {
                    let signal = Signal::new(number).unwrap();
                    let to = to.map(tid);
                    let target = to.map_or(Target::Process, Target::Thread);
                    serial += 1;
                    let result = group.send(queued(signal, serial), target, &mut nobody);
                    prop_assert_eq!(result.is_err(), to.is_some_and(|tid| !threads.contains(&tid)));
                    if signal.is_realtime() && result.is_ok() {
                        sent.entry((number, to)).or_default().push(serial);
                    }
                }
                Op::Block(thread, mask) => group.set_blocked(tid(thread), SigSet::from_bits(mask), &mut nobody),
                Op::Handle(number, again) => {
                    let signal = Signal::new(number).unwrap();
                    let _ = group.set_sigaction(signal, if again { handler() } else { ignore() });
                    if !again {
                        sent.retain(|(sent, _), _| *sent != number);
                        let _ = group.set_sigaction(signal, handler());
                    }
                }
                Op::Next(thread) if threads.contains(&tid(thread)) => {
                    match group.next(tid(thread), || false, &mut nobody) {
                        Some(Delivery::Handler(handled)) => {
                            group.handled(tid(thread), &handled, &mut nobody);
                            got(&mut sent, tid(thread), &handled.info);
                            group.set_blocked(tid(thread), handled.mask, &mut nobody);
                        }
                        Some(Delivery::Exit(_) | Delivery::ExitThread) => prop_assert!(false, "nothing ends it"),
                        _ => {}
                    }
                }
                Op::Next(_) => {}
                Op::Add(thread) => {
                    if !threads.contains(&tid(thread)) && group.add_thread(MAIN, tid(thread)).is_ok() {
                        threads.push(tid(thread));
                    }
                }
                Op::Remove(thread) => {
                    group.remove_thread(tid(thread), &mut nobody);
                    threads.retain(|known| *known != tid(thread));
                    sent.retain(|(_, to), _| *to != Some(tid(thread)));
                }
                Op::Stop(stop) => {
                    let signal = if stop { Signal::STOP } else { Signal::CONT };
                    let _ = group.send(SigInfo::kernel(signal), Target::Process, &mut nobody);
                }
                Op::Suspend(thread, mask) => group.suspend(tid(thread), SigSet::from_bits(mask), &mut nobody),
                Op::Take(thread, mask) => {
                    if let Some(info) = group.take(tid(thread), SigSet::from_bits(mask)) {
                        got(&mut sent, tid(thread), &info);
                    }
                }
            }
            prop_assert_eq!(group.audit(), Ok(()));
        }
        // At the end everything is let in.
        let _ = group.send(SigInfo::kernel(Signal::CONT), Target::Process, &mut nobody);
        for &thread in &threads {
            group.set_blocked(thread, SigSet::EMPTY, &mut nobody);
            group.restore(thread, &mut nobody);
            group.set_blocked(thread, SigSet::EMPTY, &mut nobody);
            while let Some(delivery) = group.next(thread, || false, &mut nobody) {
                if let Delivery::Handler(handled) = delivery {
                    got(&mut sent, thread, &handled.info);
                }
            }
        }
        sent.retain(|_, serials| !serials.is_empty());
        prop_assert_eq!(sent, BTreeMap::new());
    }
}

/// `info` was taken: it is the first of its kind that was sent to the thread, or to the process.
fn got(sent: &mut BTreeMap<(u32, Option<Tid>), Vec<u32>>, tid: Tid, info: &SigInfo) {
    if !info.signal.is_realtime() {
        return;
    }
    let number = info.signal.number();
    let first = |to: Option<Tid>| sent.get(&(number, to)).and_then(|serials| serials.first().copied());
    let from = [Some(tid), None].into_iter().find(|&to| first(to) == Some(info.pid()));
    let from =
        from.unwrap_or_else(|| panic!("{info:?} was never sent to {tid}, or is not its turn: {sent:?}"));
    sent.get_mut(&(number, from)).unwrap().remove(0);
}
