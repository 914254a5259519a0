use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// What kubectl sends for a connection to port 8080: two streams, whose headers are compressed with the dictionary.
const OPENED: &str = "800300010000003d0000000100000000000078f9e3c6a7c202253a48f95b044eea16061606409ab308125f99a074cc68004e892545a989b9d0c2863515141500000000ffff\
                      800300010000001600000003000000000000225333a8a44a04000000ffff";

fn frames(bytes: &[u8], step: usize) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for chunk in bytes.chunks(step.max(1)) {
        decoder.push(chunk);
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn check(hex: &str, expected: Expect) {
    let bytes = hex::decode(hex.replace(' ', "")).unwrap();
    let shown = match frames(&bytes, bytes.len()) {
        Ok(frames) => frames.iter().map(|frame| format!("{frame:?}\n")).collect(),
        Err(error) => format!("{error}\n"),
    };
    expected.assert_eq(&shown);
}

#[test]
fn what_kubectl_sends_is_understood() {
    check(
        OPENED,
        expect![[r#"
            SynStream { stream: 1, fin: false, headers: Headers([("port", "8080"), ("requestid", "0"), ("streamtype", "error")]) }
            SynStream { stream: 3, fin: false, headers: Headers([("port", "8080"), ("requestid", "0"), ("streamtype", "data")]) }
        "#]],
    );
    check(
        "00000003 01000002 6869",
        expect![[r#"
        Data { stream: 3, fin: true, payload: b"hi" }
    "#]],
    );
    check(
        "00000001 01000000",
        expect![[r#"
        Data { stream: 1, fin: true, payload: b"" }
    "#]],
    );
    check(
        "80030003 00000008 00000003 00000005",
        expect![[r#"
        RstStream { stream: 3, status: 5 }
    "#]],
    );
    check(
        "80030004 0000000c 00000001 00000004 00000064",
        expect![[r#"
        Settings
    "#]],
    );
    check(
        "80030006 00000004 00000001",
        expect![[r#"
        Ping(1)
    "#]],
    );
    check(
        "80030007 00000008 00000005 00000000",
        expect![[r#"
        GoAway { last: 5, status: 0 }
    "#]],
    );
    check(
        "80030009 00000008 00000003 00010000",
        expect![[r#"
        WindowUpdate { stream: 3, delta: 65536 }
    "#]],
    );
}

#[test]
fn what_nobody_should_send_ends_the_connection() {
    check(
        "80020001 0000000a",
        expect![[r#"
        a frame of SPDY version 2
    "#]],
    );
    check(
        "80030001 00004001",
        expect![[r#"
        a control frame of type 1 with 16385 bytes
    "#]],
    );
    check(
        "80030003 00000004 00000003",
        expect![[r#"
        a control frame of type 3 with 4 bytes
    "#]],
    );
    check(
        "80030001 00000008 00000001 00000000",
        expect![[r#"
        a control frame of type 1 with 8 bytes
    "#]],
    );
    check(
        "80030005 00000000",
        expect![[r#"
        a control frame of type 5
    "#]],
    );
    // No zlib stream; one with a dictionary that nobody knows; one with a block that is no header block.
    check(
        "80030002 00000008 00000001 ffffffff",
        expect![[r#"
        headers that are not compressed as SPDY/3 says
    "#]],
    );
    check(
        "80030002 0000000a 00000001 78f9 00000001",
        expect![[r#"
        headers that are not compressed as SPDY/3 says
    "#]],
    );
    check(
        "80030002 00000014 000000017801000400fbff00000001000000ffff",
        expect![[r#"
        headers that cannot be read
    "#]],
    );
}

#[test]
fn a_long_data_frame_is_handed_on_as_it_comes() {
    let mut decoder = Decoder::default();
    decoder.push(&[0, 0, 0, 3, 1, 0xff, 0xff, 0xff]);
    assert_eq!(decoder.next(), Ok(None));
    decoder.push(b"first");
    let part = Frame::Data { stream: 3, fin: false, payload: Bytes::from_static(b"first") };
    assert_eq!(decoder.next(), Ok(Some(part)));
    assert_eq!(decoder.next(), Ok(None));
}

/// All blocks of a connection, compressed by somebody else, with more text than a decompressor's window has.
#[test]
fn headers_of_many_streams_are_one_zlib_stream() {
    let mut compress = flate2::Compress::new(flate2::Compression::best(), true);
    let mut decoder = Decoder::default();
    for id in 0..2000_u32 {
        let headers = Headers(vec![("requestid".to_owned(), format!("{id:080}"))]);
        let mut block = Vec::with_capacity(CONTROL_MAX_BYTES);
        compress.compress_vec(&headers.block(), &mut block, flate2::FlushCompress::Sync).unwrap();
        decoder.push(&control(SYN_REPLY, false, &[&1_u32.to_be_bytes()[..], &block].concat()));
        assert_eq!(decoder.next(), Ok(Some(Frame::SynReply { stream: 1, fin: false, headers })));
    }
}

#[test]
fn headers_that_unpack_to_much_are_refused() {
    let mut compress = flate2::Compress::new(flate2::Compression::best(), true);
    let mut block = Vec::with_capacity(CONTROL_MAX_BYTES);
    compress.compress_vec(&vec![0; 1 << 20], &mut block, flate2::FlushCompress::Sync).unwrap();
    let frame = control(SYN_REPLY, false, &[&1_u32.to_be_bytes()[..], &block].concat());
    assert_eq!(frames(&frame, frame.len()), Err(Error::Headers(headers::Error::TooLong)));
}

fn some_headers() -> impl Strategy<Value = Headers> {
    proptest::collection::vec(("[a-z-]{0,12}", ".{0,20}"), 0..6).prop_map(Headers)
}

fn some_frame() -> impl Strategy<Value = Frame> {
    let number = 0..u32::MAX >> 1;
    let opened = (number.clone(), any::<bool>(), some_headers()).boxed();
    prop_oneof![
        opened.clone().prop_map(|(stream, fin, headers)| Frame::SynStream { stream, fin, headers }),
        opened.clone().prop_map(|(stream, fin, headers)| Frame::SynReply { stream, fin, headers }),
        opened.prop_map(|(stream, fin, headers)| Frame::Headers { stream, fin, headers }),
        (number.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
        Just(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (number.clone(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (number.clone(), number.clone()).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        (number, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(stream, fin, payload)| Frame::Data { stream, fin, payload: payload.into() }),
    ]
}

proptest! {
    #[test]
    fn frames_are_read_as_they_were_written(written in proptest::collection::vec(some_frame(), 0..20)) {
        let mut encoder = Encoder::default();
        let bytes: Vec<u8> = written.iter().flat_map(|frame| encoder.encode(frame)).collect();
        prop_assert_eq!(frames(&bytes, bytes.len()), Ok(written));
    }

    #[test]
    fn any_cut_gives_the_same_streams(written in proptest::collection::vec(some_frame(), 0..20), step in 1..40_usize) {
        let mut encoder = Encoder::default();
        let bytes: Vec<u8> = written.iter().flat_map(|frame| encoder.encode(frame)).collect();
        let mut joined: Vec<Frame> = Vec::new();
        let mut open = false;
        for frame in frames(&bytes, step).unwrap() {
            match (joined.last_mut(), frame) {
                (Some(Frame::Data { fin, payload, .. }), Frame::Data { fin: end, payload: more, .. }) if open => {
                    *payload = [&payload[..], &more[..]].concat().into();
                    *fin = end;
                }
                (_, frame) => joined.push(frame),
            }
            let index = joined.len() - 1;
            open = matches!((&joined[index], &written[index]), (Frame::Data { payload, .. }, Frame::Data { payload: whole, .. }) if payload.len() < whole.len());
        }
        prop_assert_eq!(joined, written);
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..12_u8) {
        drop(frames(&bytes, bytes.len()));
        // The same behind the head of a control frame, so that they are looked at.
        let framed = control(u16::from(kind), false, &bytes);
        drop(frames(&framed, framed.len()));
        let compressed = control(SYN_REPLY, false, &[&[0, 0, 0, 1, 0x78, 0x01], &bytes[..]].concat());
        drop(frames(&compressed, compressed.len()));
    }
}
