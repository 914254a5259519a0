;; An HTTP component of WASI 0.2. The first letter of the path says what it does:
;;   /      answers `hello`                 /t  traps
;;   /l     loops for ever                  /m  takes memory until there is none
;;   /s     answers after 300 ms            /o  prints `served` to its stdout, then answers
;;   /aHOST sends a request to http://HOST/ and answers 200 if that got an answer, else 502
(module
  (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.0" "[method]incoming-request.path-with-query" (func $path (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-response.set-status-code"
    (func $status (param i32 i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-response.body" (func $body (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $write (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.0" "[static]response-outparam.set"
    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-scheme"
    (func $set_scheme (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
    (func $set_authority (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
    (func $set_path (param i32 i32 i32 i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]future-incoming-response.subscribe" (func $subscribe (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]future-incoming-response.get" (func $get (param i32 i32)))
  (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $send (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
    (func $flush (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $drop_stream (param i32)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $in (param i64) (result i32)))
  (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $drop_pollable (param i32)))
  (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "hello\n")
  (data (i32.const 32) "served\n")
  (data (i32.const 48) "/")
  (global $heap (mut i32) (i32.const 4096))

  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get $size)))
    (local.get $at))

  (func $answer (param $out i32) (param $code i32)
    (local $made i32) (local $content i32) (local $stream i32)
    (local.set $made (call $response (call $fields)))
    (drop (call $status (local.get $made) (local.get $code)))
    (call $body (local.get $made) (i32.const 256))
    (local.set $content (i32.load (i32.const 260)))
    (call $write (local.get $content) (i32.const 256))
    (local.set $stream (i32.load (i32.const 260)))
    (call $set (local.get $out) (i32.const 0) (local.get $made)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $flush (local.get $stream) (i32.const 16) (i32.const 6) (i32.const 256))
    (call $drop_stream (local.get $stream))
    (call $finish (local.get $content) (i32.const 0) (i32.const 0) (i32.const 256)))

  (func $wait (param $pollable i32)
    (call $block (local.get $pollable))
    (call $drop_pollable (local.get $pollable)))

  ;; 200 or 502
  (func $ask (param $host i32) (param $length i32) (result i32)
    (local $made i32) (local $future i32)
    (local.set $made (call $request (call $fields)))
    (drop (call $set_scheme (local.get $made) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))
    (drop (call $set_authority (local.get $made) (i32.const 1) (local.get $host) (local.get $length)))
    (drop (call $set_path (local.get $made) (i32.const 1) (i32.const 48) (i32.const 1)))
    (call $send (local.get $made) (i32.const 0) (i32.const 0) (i32.const 512))
    (if (i32.load8_u (i32.const 512)) (then (return (i32.const 502))))
    (local.set $future (i32.load (i32.const 520)))
    (call $wait (call $subscribe (local.get $future)))
    (call $get (local.get $future) (i32.const 512))
    ;; some, ok, ok
    (if (i32.load8_u (i32.const 528)) (then (return (i32.const 502))))
    (i32.const 200))

  (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $in_request i32) (param $out i32)
    (local $letter i32) (local $text i32) (local $length i32) (local $stream i32)
    (call $path (local.get $in_request) (i32.const 128))
    (local.set $text (i32.load (i32.const 132)))
    (local.set $length (i32.load (i32.const 136)))
    (if (i32.gt_u (local.get $length) (i32.const 1))
      (then (local.set $letter (i32.load8_u offset=1 (local.get $text)))))
    (if (i32.eq (local.get $letter) (i32.const 116)) (then unreachable))
    (if (i32.eq (local.get $letter) (i32.const 108)) (then (loop $again (br $again))))
    (if (i32.eq (local.get $letter) (i32.const 109))
      (then (loop $more
        (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))))
    (if (i32.eq (local.get $letter) (i32.const 115))
      (then (call $wait (call $in (i64.const 300000000)))))
    (if (i32.eq (local.get $letter) (i32.const 111))
      (then
        (local.set $stream (call $stdout))
        (call $flush (local.get $stream) (i32.const 32) (i32.const 7) (i32.const 256))
        (call $drop_stream (local.get $stream))))
    (if (i32.eq (local.get $letter) (i32.const 97))
      (then
        (call $answer (local.get $out)
          (call $ask (i32.add (local.get $text) (i32.const 2)) (i32.sub (local.get $length) (i32.const 2))))
        return))
    (call $answer (local.get $out) (i32.const 200))))
