/* Requests over raw sockets at scheduled times; what driver.py's open loop does, without the interpreter's time in it.

   open_loop PORT CONNECTIONS PATIENCE LAST_ANSWER REQUESTS ARRIVALS OUT

   REQUESTS: whole HTTP requests, each after its length (uint32), sent one after another, over and over. ARRIVALS: float64 seconds from the
   start, ascending. OUT: per arrival, float64 seconds from its scheduled time to the end of its answer, and float64 status: the HTTP
   status, 0 where no connection was free for PATIENCE seconds, -1 where the connection broke or no answer came within LAST_ANSWER
   seconds of the last arrival. Then a last pair: seconds in all, requests sent.

   Answers must have a content-length or status 204 or 304. It wants a core of its own, on which it sleeps until 20 microseconds before the
   next arrival: two busy processors make hosts of virtual machines take time away from both (stalls of 10 to 40 ms, measured). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 16, EVENTS = 256 };
#define SPIN_SECONDS 20e-6

typedef struct {
    int fd;
    long arrival; /* whose answer is awaited; -1: free */
    size_t filled;
    char buffer[BUFFER];
} Connection;

typedef struct {
    double seconds, status;
} Outcome;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static char *read_all(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die(path);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size + 1);
    if (!data || fread(data, 1, *size, file) != *size) die(path);
    fclose(file);
    return data;
}

static void open_connection(Connection *c, int port, int poll, uint32_t index) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    c->arrival = -1;
    c->filled = 0;
}

/* The status of a complete answer, 0 of one that is not complete. */
static int status_of(const Connection *c) {
    const char *end = memmem(c->buffer, c->filled, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - c->buffer) + 4, length = 0;
    int status = atoi(c->buffer + 9), has_length = status == 204 || status == 304;
    for (const char *line = c->buffer; line < end; line++) {
        line = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
        if (!line || line >= end) break;
        if (!strncasecmp(line + 2, "content-length:", 15)) {
            length = strtoul(line + 17, NULL, 10);
            has_length = 1;
        }
    }
    if (!has_length) {
        fprintf(stderr, "an answer without content-length, which this driver does not read\n");
        exit(1);
    }
    return c->filled >= head + length ? status : 0;
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "usage: open_loop PORT CONNECTIONS PATIENCE LAST_ANSWER REQUESTS ARRIVALS OUT\n");
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond; the default would wake us 50 microseconds late */
    int port = atoi(argv[1]);
    uint32_t num_connections = (uint32_t)atoi(argv[2]);
    double patience = atof(argv[3]), last_answer = atof(argv[4]);
    size_t size;
    char *requests = read_all(argv[5], &size);
    size_t num_requests = 0;
    char **starts = NULL;
    for (size_t at = 0; at < size; num_requests++) {
        uint32_t length;
        memcpy(&length, requests + at, 4);
        starts = realloc(starts, (num_requests + 1) * sizeof *starts);
        starts[num_requests] = requests + at;
        at += 4 + length;
    }
    double *arrivals = (double *)read_all(argv[6], &size);
    long num_arrivals = (long)(size / sizeof(double));
    Outcome *outcomes = calloc((size_t)num_arrivals + 1, sizeof *outcomes);
    Connection *connections = malloc(num_connections * sizeof *connections);
    uint32_t *free_ones = malloc(num_connections * sizeof *free_ones); /* a ring: the one that waited longest goes first */
    uint32_t first_free = 0, num_free = num_connections;
    int poll = epoll_create1(0);
    if (!outcomes || !connections || !free_ones || poll < 0 || !num_requests) die("setup");
    for (uint32_t i = 0; i < num_connections; i++) {
        open_connection(&connections[i], port, poll, i);
        free_ones[i] = i;
    }
    double start = now(), elapsed = 0, give_up = (num_arrivals ? arrivals[num_arrivals - 1] : 0) + last_answer;
    long next = 0, sent = 0;
    while ((next < num_arrivals || num_free < num_connections) && elapsed < give_up) {
        elapsed = now() - start;
        while (next < num_arrivals && arrivals[next] <= elapsed && num_free) {
            if (elapsed - arrivals[next] > patience) { /* status 0 */
                next++;
                continue;
            }
            Connection *c = &connections[free_ones[first_free]];
            first_free = (first_free + 1) % num_connections;
            num_free--;
            c->arrival = next++;
            uint32_t length;
            char *request = starts[sent++ % (long)num_requests];
            memcpy(&length, request, 4);
            if (send(c->fd, request + 4, length, MSG_NOSIGNAL) != (ssize_t)length && errno == EAGAIN) die("send");
        }
        struct epoll_event events[EVENTS];
        struct timespec wait = {0, 0};
        double left = next < num_arrivals && num_free ? arrivals[next] - (now() - start) : 1e-3;
        if (left > SPIN_SECONDS) wait.tv_nsec = (long)(1e9 * ((left < 1e-3 ? left : 1e-3) - SPIN_SECONDS));
        int found = epoll_pwait2(poll, events, EVENTS, &wait, NULL);
        for (int i = 0; i < found; i++) {
            Connection *c = &connections[events[i].data.u32];
            ssize_t got = recv(c->fd, c->buffer + c->filled, BUFFER - c->filled, 0);
            if (got < 0 && errno == EAGAIN) continue;
            int status = 0;
            if (got > 0) {
                c->filled += (size_t)got;
                status = status_of(c);
                if (!status && c->filled < BUFFER) continue;
            }
            long arrival = c->arrival;
            if (arrival >= 0) {
                outcomes[arrival].seconds = now() - start - arrivals[arrival];
                outcomes[arrival].status = status ? status : -1;
                free_ones[(first_free + num_free++) % num_connections] = events[i].data.u32;
            }
            c->arrival = -1;
            c->filled = 0;
            if (got <= 0) {
                close(c->fd);
                open_connection(c, port, poll, events[i].data.u32);
            }
        }
    }
    for (uint32_t i = 0; i < num_connections; i++)
        if (connections[i].arrival >= 0) outcomes[connections[i].arrival].status = -1;
    outcomes[num_arrivals].seconds = now() - start;
    outcomes[num_arrivals].status = (double)sent;
    FILE *out = fopen(argv[7], "wb");
    if (!out || fwrite(outcomes, sizeof *outcomes, (size_t)num_arrivals + 1, out) != (size_t)num_arrivals + 1 || fclose(out)) die(argv[7]);
    return 0;
}
