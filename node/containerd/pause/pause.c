// The process that keeps a sandbox's namespaces: it waits to be ended and reaps what it is given as parent.
// Freestanding, so that it is a static program of a few kilobytes on every machine that can link Rust.

#if defined(__x86_64__)
enum { WAIT4 = 61, RT_SIGPROCMASK = 14, RT_SIGTIMEDWAIT = 128, EXIT_GROUP = 231 };
static long call(long number, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
enum { WAIT4 = 260, RT_SIGPROCMASK = 135, RT_SIGTIMEDWAIT = 137, EXIT_GROUP = 94 };
static long call(long number, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#error "pause.c knows x86_64 and aarch64"
#endif

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1, SET_BYTES = 8 };

void _start(void) {
    // The kernel drops signals to a namespace's first process that it does not handle, unless they are blocked.
    unsigned long signals = 1ul << (SIGINT - 1) | 1ul << (SIGTERM - 1) | 1ul << (SIGCHLD - 1);
    call(RT_SIGPROCMASK, SIG_BLOCK, (long)&signals, 0, SET_BYTES);
    for (;;) {
        long signal = call(RT_SIGTIMEDWAIT, (long)&signals, 0, 0, SET_BYTES);
        if (signal == SIGINT || signal == SIGTERM) call(EXIT_GROUP, 0, 0, 0, 0);
        while (call(WAIT4, -1, 0, WNOHANG, 0) > 0) {}
    }
}
