/* Prints a line each second, as a process does: tick [COUNT [EXIT_CODE]].
 * Without a count, or with 0, it never ends by itself. TICK_MESSAGE changes what it prints. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long count = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    int code = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    const char *message = getenv("TICK_MESSAGE");
    /* A log that arrives late is of no use to those who follow it. */
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    for (long tick = 1; count == 0 || tick <= count; tick++) {
        printf("%s %ld\n", message && *message ? message : "tick", tick);
        if (tick != count) sleep(1);
    }
    if (code) fprintf(stderr, "exiting with %d\n", code);
    return code;
}
