;; A command of WASI 0.1. The first letter of its first argument says what it does:
;;   w  waits for ever                 t  ends with code 3
;;   p  prints two lines and an error  s  shows its environment and arguments
;;   f  writes /data/out               h  prints `hello`
;;   l  loops for ever                 m  takes memory until there is none
;;   c  copies its input to its output
;;   x  traps                          other: ends with code 0
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (data (i32.const 64) "out 1\nout 2\nerr 1\nhello\nwritten\nout")
  (data (i32.const 120) "arg ")
  (data (i32.const 124) "\n")

  (func $print (param $file i32) (param $text i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $text))
    (i32.store (i32.const 4) (local.get $length))
    (if (call $fd_write (local.get $file) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $exit (i32.const 5)))))

  (func $print_string (param $text i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $next)))
    (call $print (i32.const 1) (local.get $text) (i32.sub (local.get $end) (local.get $text)))
    (call $print (i32.const 1) (i32.const 124) (i32.const 1)))

  ;; The pointers begin at $list.
  (func $print_all (param $list i32) (param $count i32) (param $prefix i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (call $print (i32.const 1) (i32.const 120) (local.get $prefix))
        (call $print_string (i32.load (local.get $list)))
        (local.set $list (i32.add (local.get $list) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next))))

  (func $show
    (drop (call $environ_sizes (i32.const 16) (i32.const 20)))
    (drop (call $environ (i32.const 8192) (i32.const 16384)))
    (call $print_all (i32.const 8192) (i32.load (i32.const 16)) (i32.const 0))
    ;; Without its own name.
    (call $print_all (i32.const 1028) (i32.sub (i32.load (i32.const 32)) (i32.const 1)) (i32.const 4)))

  (func $wait
    (i32.store (i32.const 528) (i32.const 1))
    (i64.store (i32.const 536) (i64.const 1000000000))
    (loop $again
      (drop (call $poll (i32.const 512) (i32.const 640) (i32.const 1) (i32.const 700)))
      (br $again)))

  (func $copy
    (block $done
      (loop $next
        (i32.store (i32.const 0) (i32.const 8192))
        (i32.store (i32.const 4) (i32.const 4096))
        (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (call $exit (i32.const 6))))
        (br_if $done (i32.eqz (i32.load (i32.const 8))))
        (call $print (i32.const 1) (i32.const 8192) (i32.load (i32.const 8)))
        (br $next))))

  (func $write_file
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 96) (i32.const 3) (i32.const 9)
          (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 24))
      (then (call $exit (i32.const 1))))
    (call $print (i32.load (i32.const 24)) (i32.const 88) (i32.const 8)))

  (func (export "_start")
    (local $letter i32)
    (drop (call $args_sizes (i32.const 32) (i32.const 36)))
    (drop (call $args (i32.const 1024) (i32.const 2048)))
    (if (i32.gt_u (i32.load (i32.const 32)) (i32.const 1))
      (then (local.set $letter (i32.load8_u (i32.load (i32.const 1028))))))
    (if (i32.eq (local.get $letter) (i32.const 119)) (then (call $wait)))
    (if (i32.eq (local.get $letter) (i32.const 116)) (then (call $exit (i32.const 3))))
    (if (i32.eq (local.get $letter) (i32.const 112))
      (then
        (call $print (i32.const 1) (i32.const 64) (i32.const 12))
        (call $print (i32.const 2) (i32.const 76) (i32.const 6))))
    (if (i32.eq (local.get $letter) (i32.const 115)) (then (call $show)))
    (if (i32.eq (local.get $letter) (i32.const 102)) (then (call $write_file)))
    (if (i32.eq (local.get $letter) (i32.const 99)) (then (call $copy)))
    (if (i32.eq (local.get $letter) (i32.const 104)) (then (call $print (i32.const 1) (i32.const 82) (i32.const 6))))
    (if (i32.eq (local.get $letter) (i32.const 108)) (then (loop $again (br $again))))
    (if (i32.eq (local.get $letter) (i32.const 109))
      (then (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))))
    (if (i32.eq (local.get $letter) (i32.const 120)) (then unreachable))))
