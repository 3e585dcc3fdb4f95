//! Tests the readers with captures that are built byte by byte, in each dialect, complete and damaged.

use std::io::Write as _;

use super::*;

const LITTLE: bool = false;
const BIG: bool = true;

/// The bytes of a file under construction, in one byte order.
struct Bytes(Vec<u8>, bool);

impl Bytes {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(if self.1 { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(if self.1 { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    /// Writes a pcapng block around the bytes that `body` writes.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self(Vec::new(), self.1);
        body(&mut inner);
        inner.0.resize(inner.0.len().next_multiple_of(4), 0);
        let total = u32::try_from(inner.0.len() + 12).unwrap();
        self.u32(kind).u32(total).raw(&inner.0).u32(total)
    }

    fn section(&mut self) -> &mut Self {
        self.block(0x0a0d_0d0a, |body| {
            body.u32(0x1a2b_3c4d).u16(1).u16(0).raw(&[0xff; 8]);
        })
    }

    fn interface(&mut self, link: u16, snap: u32, options: &[(u16, &[u8])]) -> &mut Self {
        self.block(1, |body| {
            body.u16(link).u16(0).u32(snap);
            for (code, value) in options {
                body.u16(*code).u16(u16::try_from(value.len()).unwrap()).raw(value);
                body.0.resize(body.0.len().next_multiple_of(4), 0);
            }
        })
    }

    fn enhanced(&mut self, interface: u32, ticks: u64, frame: &[u8]) -> &mut Self {
        self.block(6, |body| {
            let length = u32::try_from(frame.len()).unwrap();
            body.u32(interface).u32(u32::try_from(ticks >> 32).unwrap()).u32((ticks & 0xffff_ffff) as u32);
            body.u32(length).u32(length).raw(frame);
        })
    }
}

fn pcap(magic: u32, big: bool, link: u32, records: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut file = Bytes(Vec::new(), big);
    file.u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65_535).u32(link);
    for (seconds, fraction, frame) in records {
        let length = u32::try_from(frame.len()).unwrap();
        file.u32(*seconds).u32(*fraction).u32(length).u32(length);
        if magic == 0xa1b2_cd34 {
            file.u32(7).u32(0);
        }
        file.raw(frame);
    }
    file.0
}

type Owned = (Duration, i32, Vec<u8>);

/// All frames, and the error at the end if there is one.
fn frames(file: &[u8]) -> (Vec<Owned>, Option<FileError>) {
    let mut frames = Vec::new();
    let mut reader = match Reader::new(file) {
        Ok(reader) => reader,
        Err(error) => return (frames, Some(error)),
    };
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                assert_eq!(frame.number, frames.len() as u64 + 1);
                frames.push((frame.time, frame.link, frame.bytes.to_vec()));
            }
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

fn whole(file: &[u8]) -> Vec<Owned> {
    let (frames, error) = frames(file);
    assert!(error.is_none(), "{error:?}");
    frames
}

#[test]
fn pcap_dialects_give_same_frames() {
    let at = |nanos| Duration::new(1_700_000_000, nanos);
    for big in [LITTLE, BIG] {
        for (magic, fraction, nanos) in
            [(0xa1b2_c3d4, 123_456, 123_456_000), (0xa1b2_3c4d, 123_456_789, 123_456_789), (0xa1b2_cd34, 1, 1_000)]
        {
            let file = pcap(magic, big, 1, &[(1_700_000_000, fraction, b"first"), (1_700_000_001, 0, b"")]);
            let expected = vec![(at(nanos), 1, b"first".to_vec()), (at(0) + Duration::from_secs(1), 1, Vec::new())];
            assert_eq!(whole(&file), expected, "{magic:x} {big}");
        }
    }
}

#[test]
fn checksum_bits_do_not_change_link_type() {
    assert_eq!(whole(&pcap(0xa1b2_c3d4, LITTLE, 0x2400_0001, &[(0, 0, b"x")]))[0].1, 1);
}

#[test]
fn pcapng_interface_has_link_type_and_clock() {
    for big in [LITTLE, BIG] {
        let mut file = Bytes(Vec::new(), big);
        let offset = if big { 10_i64.to_be_bytes() } else { 10_i64.to_le_bytes() };
        file.section()
            .interface(1, 0, &[])
            .interface(101, 0, &[(2, b"tun0"), (9, &[9]), (14, &offset), (0, &[])])
            .interface(276, 0, &[(9, &[0x80 | 10])]);
        file.enhanced(0, 5_000_001, b"micro").enhanced(1, 5_000_000_001, b"nano").enhanced(
            2,
            5 * 1024 + 512,
            b"binary",
        );
        let expected = vec![
            (Duration::new(5, 1_000), 1, b"micro".to_vec()),
            (Duration::new(15, 1), 101, b"nano".to_vec()),
            (Duration::new(5, 500_000_000), 276, b"binary".to_vec()),
        ];
        assert_eq!(whole(&file.0), expected, "{big}");
    }
}

#[test]
fn sections_have_own_byte_order() {
    let mut first = Bytes(Vec::new(), LITTLE);
    first.section().interface(1, 0, &[]).enhanced(0, 1, b"little");
    let mut second = Bytes(Vec::new(), BIG);
    second.section().interface(113, 0, &[]).enhanced(0, 2, b"big");
    first.raw(&second.0);
    let links: Vec<_> = whole(&first.0).into_iter().map(|(_, link, bytes)| (link, bytes)).collect();
    assert_eq!(links, [(1, b"little".to_vec()), (113, b"big".to_vec())]);
}

#[test]
fn obsolete_packets_are_read() {
    let mut file = Bytes(Vec::new(), LITTLE);
    file.section().interface(1, 4, &[]).block(0x0bad, |body| {
        body.raw(&[1; 300_000]);
    });
    file.block(2, |body| {
        body.u16(0).u16(9).u32(0).u32(7_000_000).u32(3).u32(3).raw(b"old");
    });
    file.block(3, |body| {
        body.u32(9).raw(b"simp");
    });
    let at = Duration::from_secs(7);
    assert_eq!(whole(&file.0), [(at, 1, b"old".to_vec()), (at, 1, b"simp".to_vec())], "cut at the interface's limit");
}

#[test]
fn time_beyond_calendar_is_clamped() {
    for exponent in [0, 38, 0x7f, 0x80, 0xff] {
        let mut file = Bytes(Vec::new(), LITTLE);
        file.section().interface(1, 0, &[(9, &[exponent]), (14, &i64::MAX.to_le_bytes())]).enhanced(0, u64::MAX, b"x");
        assert_eq!(whole(&file.0)[0].0, MAX_TIME, "{exponent}");
    }
    let mut file = Bytes(Vec::new(), LITTLE);
    file.section().interface(1, 0, &[(14, &i64::MIN.to_le_bytes())]).enhanced(0, 5, b"x");
    assert_eq!(whole(&file.0)[0].0.as_secs(), 0);
}

/// One file per format, with several frames.
fn samples() -> [Vec<u8>; 3] {
    let records: [(u32, u32, &[u8]); 3] = [(1, 0, b"one"), (2, 0, b"three"), (3, 0, b"five!!")];
    let mut ng = Bytes(Vec::new(), BIG);
    ng.section()
        .interface(1, 0, &[(9, &[6])])
        .enhanced(0, 1, b"one")
        .enhanced(0, 2, b"three")
        .enhanced(0, 3, b"five!!");
    [pcap(0xa1b2_c3d4, LITTLE, 1, &records), pcap(0xa1b2_cd34, BIG, 1, &records), ng.0]
}

#[test]
fn truncated_file_names_its_end() {
    for file in samples() {
        let all = whole(&file);
        for length in 0..file.len() {
            let (found, error) = frames(&file[..length]);
            assert!(all.starts_with(&found), "{length}");
            match error {
                Some(FileError::Truncated { frames, offset, start }) => {
                    assert_eq!((frames, offset), (found.len() as u64, length as u64));
                    assert!(start <= offset);
                }
                Some(FileError::Empty) => assert_eq!(length, 0),
                Some(FileError::NotACapture) => assert!(length < 4),
                // A cut between two packets cannot be detected.
                None => assert!(length >= 24 && found.len() < all.len(), "{length}"),
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}

#[test]
fn wrong_byte_causes_no_panic() {
    for file in samples() {
        for place in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut broken = file.clone();
                broken[place] = value;
                let (found, _) = frames(&broken);
                assert!(found.len() <= 3 && found.iter().all(|(time, ..)| *time <= MAX_TIME), "{place} {value}");
            }
        }
    }
}

#[test]
fn syntax_error_is_named_with_position() {
    let message = |file: &[u8]| frames(file).1.unwrap().to_string();
    let good = pcap(0xa1b2_c3d4, LITTLE, 1, &[(1, 0, b"one")]);
    let mut huge = good.clone();
    huge.extend([0; 8]);
    huge.extend([0xff; 8]);
    assert_eq!(
        message(&huge),
        "the file is damaged at byte 43: a packet of 4294967295 bytes exceeds the maximum of 262144; complete \
         packets before it: 1"
    );
    assert_eq!(message(b"#!/bin/sh\n"), FileError::NotACapture.to_string());
    assert_eq!(message(&[0x1f, 0x8b, 8, 0]), "the file is compressed with gzip; decompress it first");
    let mut stray = Bytes(Vec::new(), LITTLE);
    stray.section().enhanced(3, 0, b"x");
    assert!(
        message(&stray.0).ends_with(
            "a packet names interface 3, which the section does not describe; complete packets before it: 0"
        )
    );
    let mut lengths = Bytes(Vec::new(), LITTLE);
    lengths.section().interface(1, 0, &[]);
    *lengths.0.last_mut().unwrap() = 1;
    assert!(message(&lengths.0).ends_with("the two length fields of a block differ; complete packets before it: 0"));
}

#[test]
fn false_length_allocates_no_more_memory() {
    const LIE: usize = 128 << 20;
    for length in [100, 3 * 256 * 1024 + 5] {
        let bytes = vec![7; length];
        let mut input = Input::new(bytes[..4].to_vec(), &bytes[4..]);
        assert!(matches!(input.read_to(LIE), Err(FileError::Truncated { .. })));
        assert_eq!((&input.record, input.end()), (&bytes, length as u64));
        assert!(input.record.capacity() <= 2 * bytes.len().max(128));
    }
}

#[test]
fn fifo_without_writer_is_refused_immediately() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(matches!(Reader::open(&path), Err(FileError::NotAFile)));
}

#[test]
fn libpcap_reads_same_frames() {
    let directory = tempfile::tempdir().unwrap();
    for (number, bytes) in samples().into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        std::fs::write(&path, &bytes).unwrap();
        let mut theirs = ::pcap::Capture::from_file(&path).unwrap();
        for (time, link, frame) in whole(&bytes) {
            assert_eq!(theirs.get_datalink().0, link);
            let packet = theirs.next_packet().unwrap();
            assert_eq!(
                (packet.header.ts.tv_sec, packet.data),
                (i64::try_from(time.as_secs()).unwrap(), frame.as_slice())
            );
        }
        assert!(theirs.next_packet().is_err());
    }
}

#[test]
fn growing_file_ends_at_first_length() {
    let mut bytes = Bytes(Vec::new(), LITTLE);
    bytes.u32(0xa1b2_c3d4).u16(2).u16(4).u32(0).u32(0).u32(65_535).u32(1);
    let header = bytes.0.len();
    bytes.u32(1_700_000_000).u32(0).u32(4).u32(4).raw(&[7; 4]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes.0).unwrap();
    let mut reader = Reader::open(file.path()).unwrap();
    file.write_all(&bytes.0[header..]).unwrap();
    assert_eq!(reader.next_frame().unwrap().map(|frame| frame.number), Some(1));
    assert_eq!(reader.next_frame().unwrap(), None, "a packet that was written after the start is not read");
}
