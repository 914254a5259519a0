/* Prints a line each second, as a process does: tick [COUNT [EXIT_CODE]].
 * Without a count, or with 0, it never ends by itself. TICK_MESSAGE changes what it prints; in the file that TICK_FILE
 * names it keeps the number, and goes on from there. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static long last(const char *path) {
    char text[32] = "";
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    return strtol(text, NULL, 10);
}

static void keep(const char *path, long tick) {
    /* Written over in one piece, and never shorter: whoever ends this between two steps leaves a number behind. */
    FILE *file = path ? fopen(path, "r+") : NULL;
    if (path && !file) file = fopen(path, "w");
    if (file) {
        fprintf(file, "%ld\n", tick);
        fclose(file);
    } else if (path) {
        perror(path);
        exit(1);
    }
}

int main(int argc, char **argv) {
    long count = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    int code = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    const char *message = getenv("TICK_MESSAGE");
    /* A log that arrives late is of no use to those who follow it. */
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    const char *path = getenv("TICK_FILE");
    long first = last(path);
    for (long tick = 1; count == 0 || tick <= count; tick++) {
        keep(path, first + tick);
        printf("%s %ld\n", message && *message ? message : "tick", first + tick);
        if (tick != count) sleep(1);
    }
    if (code) fprintf(stderr, "exiting with %d\n", code);
    return code;
}
