/* The ground truth: an HTTP server that streams tokens at set times and logs every write of its own.
 *
 * What a client reports is compared with this log. So the server claims nothing about when it meant to write,
 * only when it did: a stamp right before each send(), on the monotonic and the wall clock, and how long the
 * send took. Whether it kept its own schedule (lateness) is printed at the end, because a truth that wavers is
 * none: look there first.
 *
 * One thread, one epoll, one timerfd set to the absolute time of the next write, so nothing drifts. Speaks
 * OpenAI POST /v1/completions and SGLang's POST /generate as streams (SSE in chunked encoding, keep-alive),
 * GET /v1/models and /health. Everything else is a 404 that says so.
 *
 * Owns the log's format, which benchmarks/_truth.py reads:
 *   "prefixlab-truth-1\n" padded to 32 bytes, uint64 requests, uint64 writes, uint64 writes lost,
 *   struct request[], struct entry[]
 *
 * Invariant: one struct entry per token handed to the kernel, in the order of writing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define ID_SIZE 64
#define EVENT_SIZE 2048
#define READ_SIZE (1 << 20)
#define MAX_BODY (64 << 20)
#define WRITES_PER_TURN 256 /* then look for new requests, also when the schedule cannot be kept */

enum { OPEN, DONE, CANCELLED };
enum { BLOCKED = 1 };

struct request {
    char id[ID_SIZE];    /* X-Request-Id, the body's "user" or "rid", or empty: then the row number names it */
    int64_t kernel_ns;   /* wall clock: the kernel's stamp of its last bytes; 0 without one */
    int64_t arrived_ns;  /* monotonic: the same moment, or read_ns without a stamp */
    int64_t read_ns;     /* monotonic: when this process had read all of it */
    uint32_t num_tokens; /* asked for */
    uint32_t num_written;
    uint32_t state;
    uint32_t connection;
};

struct entry {
    uint32_t request, token;
    int64_t due_ns, mono_ns, real_ns; /* mono and real: right before the send */
    uint32_t send_ns, flags;
};

struct connection {
    char *in, *out;
    size_t in_len, in_cap, out_len, out_at;
    uint32_t generation; /* a closed connection's deadlines and places in the queue are void */
    uint32_t request, next_token, prompt_tokens;
    bool open, queued, streaming, native, usage, continuous, close_after; /* queued: it waits for a slot */
};

struct deadline {
    int64_t due_ns;
    int fd;
    uint32_t generation;
};

static struct {
    int port, core;
    int64_t ttft_ns, itl_ns;
    uint32_t tokens, slots;
    bool lockstep, early_headers;
    size_t log_capacity;
    const char *log, *model;
} opt = {.core = -1, .ttft_ns = 100000000, .itl_ns = 10000000, .tokens = 128, .log_capacity = 1 << 21, .model = "truth"};

static int ep, timer;
static int64_t started_ns;
static struct connection *conns;
static int max_conns;
static struct deadline *heap, *waiting; /* waiting: a ring of requests without a slot */
static size_t heap_len, waiting_at, waiting_len, queue_cap;
static uint32_t num_streaming;
static struct request *requests;
static size_t num_requests, requests_cap;
static struct entry *entries;
static size_t num_entries, num_lost;

static void die(const char *what) {
    fprintf(stderr, "truth: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* The wall clock against the monotonic one: the narrowest of a few brackets, as this process may be put aside
 * between two readings. */
static int64_t wall_offset_ns(void) {
    int64_t offset = 0, narrowest = INT64_MAX;
    for (int i = 0; i < 4; i++) {
        int64_t before = clock_ns(CLOCK_MONOTONIC), wall = clock_ns(CLOCK_REALTIME), after = clock_ns(CLOCK_MONOTONIC);
        if (after - before < narrowest) {
            narrowest = after - before;
            offset = wall - (before + after) / 2;
        }
    }
    return offset;
}

static void *grown(void *old, size_t size) {
    void *new = realloc(old, size);
    if (!new) die("memory");
    return new;
}

/* ---- deadlines ------------------------------------------------------------------------------------ */

static void push(struct deadline d) {
    if (heap_len == queue_cap) die("too many streams begun and given up");
    size_t i = heap_len++;
    for (; i && heap[(i - 1) / 2].due_ns > d.due_ns; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = d;
}

static struct deadline pop(void) {
    struct deadline top = heap[0], last = heap[--heap_len];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < heap_len; i = child) {
        if (child + 1 < heap_len && heap[child + 1].due_ns < heap[child].due_ns) child++;
        if (heap[child].due_ns >= last.due_ns) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* ---- connections ---------------------------------------------------------------------------------- */

static void start_next(void);

static void close_connection(int fd) {
    struct connection *c = &conns[fd];
    bool was_streaming = c->streaming;
    if (was_streaming || c->queued) requests[c->request].state = CANCELLED;
    if (was_streaming) num_streaming--;
    free(c->in);
    free(c->out);
    *c = (struct connection){.generation = c->generation + 1};
    close(fd);
    if (was_streaming) start_next();
}

static void watch(int fd, bool for_room) {
    struct epoll_event e = {.events = EPOLLIN | (for_room ? EPOLLOUT : 0), .data.fd = fd};
    epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

/* Hand bytes to the kernel; what it does not take now is kept and sent when there is room. False: the
 * connection is gone (and closed). */
static bool write_out(int fd, const char *bytes, size_t len, bool *blocked) {
    struct connection *c = &conns[fd];
    ssize_t sent = 0;
    if (!c->out_len) {
        sent = send(fd, bytes, len, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return close_connection(fd), false;
        if (sent < 0) sent = 0;
        if ((size_t)sent == len) return true;
        watch(fd, true);
    }
    *blocked = true;
    c->out = grown(c->out, c->out_len + len - sent);
    memcpy(c->out + c->out_len, bytes + sent, len - sent);
    c->out_len += len - sent;
    return true;
}

static void write_rest(int fd) {
    struct connection *c = &conns[fd];
    ssize_t sent = send(fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) close_connection(fd);
        return;
    }
    c->out_at += sent;
    if (c->out_at == c->out_len) {
        c->out_at = c->out_len = 0;
        watch(fd, false);
        if (c->close_after) close_connection(fd);
    }
}

static bool answer(int fd, const char *status, const char *body) {
    char bytes[EVENT_SIZE];
    bool blocked = false;
    int len = snprintf(bytes, sizeof bytes,
                       "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n%s", status,
                       strlen(body), conns[fd].close_after ? "Connection: close\r\n" : "", body);
    if (!write_out(fd, bytes, len, &blocked)) return false;
    if (conns[fd].close_after && !blocked) return close_connection(fd), false;
    return true;
}

static bool refuse(int fd, const char *status, const char *why) {
    char body[512];
    snprintf(body, sizeof body, "{\"error\":{\"message\":\"%s\",\"type\":\"truth\"}}", why);
    return answer(fd, status, body);
}

/* ---- streams -------------------------------------------------------------------------------------- */

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                           "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

/* Append one SSE event; `at` is where the bytes end, and the result where they end now. */
__attribute__((format(printf, 2, 3))) static char *event(char *at, const char *format, ...) {
    va_list args;
    va_start(args, format);
    at += sprintf(at, "data: ");
    at += vsnprintf(at, EVENT_SIZE, format, args);
    va_end(args);
    return at + sprintf(at, "\n\n");
}

static char *usage(char *at, const struct connection *c, uint32_t done) {
    return at + sprintf(at, "{\"prompt_tokens\":%u,\"total_tokens\":%u,\"completion_tokens\":%u}", c->prompt_tokens,
                        c->prompt_tokens + done, done);
}

static char *token_event(char *at, const struct connection *c, bool last) {
    const uint32_t done = c->next_token + 1;
    char counts[128] = "null";
    if (c->native)
        return event(at,
                     "{\"text\":\" tok\",\"meta_info\":{\"id\":\"%u\",\"prompt_tokens\":%u,\"completion_tokens\":%u,"
                     "\"cached_tokens\":0,\"finish_reason\":%s}}",
                     c->request, c->prompt_tokens, done, last ? "{\"type\":\"length\"}" : "null");
    if (c->continuous) usage(counts, c, done);
    return event(at,
                 "{\"id\":\"cmpl-%u\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"%s\","
                 "\"choices\":[{\"index\":0,\"text\":\" tok\",\"logprobs\":null,\"finish_reason\":%s,"
                 "\"stop_reason\":null}],\"usage\":%s}",
                 c->request, opt.model, last ? "\"length\"" : "null", counts);
}

static char *tail(char *at, const struct connection *c) {
    char counts[128];
    if (c->usage && !c->native) {
        usage(counts, c, c->next_token + 1);
        at = event(at,
                   "{\"id\":\"cmpl-%u\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"%s\","
                   "\"choices\":[],\"usage\":%s}",
                   c->request, opt.model, counts);
    }
    return event(at, "[DONE]");
}

static bool read_requests(int fd);

static void write_token(struct deadline d) {
    struct connection *c = &conns[d.fd];
    struct request *r = &requests[c->request];
    char bytes[4 * EVENT_SIZE], *at = bytes;
    const bool last = c->next_token + 1 == r->num_tokens;
    bool blocked = false;

    if (c->next_token == 0 && !opt.early_headers) at += sprintf(at, "%s", HEAD);
    char *size = at; /* one write is one transfer chunk, of 4 hexadecimal digits, so that a read of several
                        chunks is a read of several writes */
    at = token_event(at + 6, c, last);
    if (last) at = tail(at, c);
    char digits[16];
    sprintf(digits, "%04x\r\n", (unsigned)(at - size - 6));
    memcpy(size, digits, 6);
    at += sprintf(at, last ? "\r\n0\r\n\r\n" : "\r\n");

    struct entry e = {.request = c->request, .token = c->next_token, .due_ns = d.due_ns};
    e.real_ns = clock_ns(CLOCK_REALTIME);
    e.mono_ns = clock_ns(CLOCK_MONOTONIC);
    if (!write_out(d.fd, bytes, at - bytes, &blocked)) return;
    e.send_ns = clock_ns(CLOCK_MONOTONIC) - e.mono_ns;
    e.flags = blocked ? BLOCKED : 0;
    if (num_entries < opt.log_capacity)
        entries[num_entries++] = e;
    else
        num_lost++;

    c->next_token++;
    r->num_written++;
    if (!last) {
        d.due_ns += opt.itl_ns;
        push(d);
        return;
    }
    r->state = DONE;
    c->streaming = false;
    num_streaming--;
    start_next();
    if (c->close_after && !c->out_len)
        close_connection(d.fd);
    else
        read_requests(d.fd);
}

static void start(int fd, int64_t from_ns) {
    int64_t due_ns = from_ns + opt.ttft_ns;
    if (opt.lockstep) { /* as an engine's steps: all streams at once */
        int64_t steps = (due_ns - started_ns + opt.itl_ns - 1) / opt.itl_ns;
        due_ns = started_ns + steps * opt.itl_ns;
    }
    push((struct deadline){due_ns, fd, conns[fd].generation});
}

/* A slot is free: it goes to the request that has waited longest. Its time to first token starts here. */
static void start_next(void) {
    while (waiting_len) {
        struct deadline d = waiting[waiting_at];
        waiting_at = (waiting_at + 1) % queue_cap;
        waiting_len--;
        if (conns[d.fd].generation != d.generation) continue;
        conns[d.fd].queued = false;
        conns[d.fd].streaming = true;
        num_streaming++;
        start(d.fd, clock_ns(CLOCK_MONOTONIC));
        return;
    }
}

/* ---- requests ------------------------------------------------------------------------------------- */

/* Where the value of `"name":` begins, or NULL. Inside a JSON string the quotes would be escaped, so no prompt
 * is mistaken for a field. */
static const char *field(const char *body, size_t len, const char *name) {
    char quoted[64];
    int n = snprintf(quoted, sizeof quoted, "\"%s\"", name);
    const char *at = memmem(body, len, quoted, n), *end = body + len;
    if (!at) return NULL;
    for (at += n; at < end && (*at == ' ' || *at == ':'); at++) {}
    return at < end ? at : NULL;
}

static bool is_true(const char *body, size_t len, const char *name) {
    const char *at = field(body, len, name);
    return at && *at == 't';
}

static uint32_t number(const char *body, size_t len, const char *const *names, uint32_t otherwise) {
    for (; *names; names++) {
        const char *at = field(body, len, *names);
        if (at && *at >= '0' && *at <= '9') return strtoul(at, NULL, 10); /* a JSON body ends in }, so this ends */
    }
    return otherwise;
}

/* Exact for token ids; for text, its words: nobody here has a tokenizer. */
static uint32_t count_prompt(const char *body, size_t len) {
    const char *at = field(body, len, "prompt"), *end = body + len;
    if (!at) at = field(body, len, "input_ids");
    if (!at) at = field(body, len, "text");
    if (!at) return 0;
    const char separator = *at == '[' ? ',' : ' ', stop = *at == '[' ? ']' : '"';
    uint32_t count = 1;
    for (at++; at < end && *at != stop; at++) count += *at == separator;
    return count;
}

static void copy_id(char *id, const char *at, const char *end, char stop) {
    size_t n = 0;
    while (at < end && *at != stop && n < ID_SIZE - 1) id[n++] = *at++;
    id[n] = 0;
}

static const char *header(const char *head, const char *end, const char *name) {
    size_t n = strlen(name);
    for (const char *line = head; (line = memmem(line, end - line, "\r\n", 2)) && line + 2 < end;) {
        line += 2;
        if ((size_t)(end - line) > n && line[n] == ':' && !strncasecmp(line, name, n)) {
            for (line += n + 1; *line == ' '; line++) {}
            return line;
        }
    }
    return NULL;
}

static bool begin_stream(int fd, const char *head, const char *body, size_t len, bool native, int64_t kernel_ns) {
    static const char *const LIMITS[] = {"max_tokens", "max_completion_tokens", "max_new_tokens", NULL};
    struct connection *c = &conns[fd];
    if (!is_true(body, len, "stream")) return refuse(fd, "400 Bad Request", "this server only streams");

    if (num_requests == requests_cap) {
        requests_cap = requests_cap ? 2 * requests_cap : 1 << 14;
        requests = grown(requests, requests_cap * sizeof *requests);
    }
    struct request r = {.kernel_ns = kernel_ns, .connection = fd};
    r.read_ns = clock_ns(CLOCK_MONOTONIC);
    r.arrived_ns = kernel_ns ? kernel_ns - wall_offset_ns() : r.read_ns;
    r.num_tokens = number(body, len, LIMITS, opt.tokens);
    if (!r.num_tokens) r.num_tokens = 1;
    const char *id = header(head, body, "x-request-id");
    if (id)
        copy_id(r.id, id, body, '\r');
    else if ((id = field(body, len, "user")) || (id = field(body, len, "rid")))
        copy_id(r.id, id + 1, body + len, '"');

    c->request = num_requests;
    c->next_token = 0;
    c->native = native;
    c->usage = is_true(body, len, "include_usage");
    c->continuous = is_true(body, len, "continuous_usage_stats");
    c->prompt_tokens = count_prompt(body, len);
    requests[num_requests++] = r;

    bool blocked = false;
    if (opt.early_headers && !write_out(fd, HEAD, sizeof HEAD - 1, &blocked)) return false;
    if (opt.slots && num_streaming == opt.slots) {
        if (waiting_len == queue_cap) die("too many requests queued and given up");
        c->queued = true;
        waiting[(waiting_at + waiting_len++) % queue_cap] = (struct deadline){0, fd, c->generation};
        return true;
    }
    c->streaming = true;
    num_streaming++;
    start(fd, r.arrived_ns);
    return true;
}

/* Take the first whole request off the connection's bytes. False: none is whole yet, or the connection closed. */
static bool take_request(int fd, int64_t kernel_ns) {
    struct connection *c = &conns[fd];
    const char *head = c->in, *head_end = memmem(head, c->in_len, "\r\n\r\n", 4);
    if (!head_end) return false;
    const char *body = head_end + 4;
    const char *length = header(head, body, "content-length"), *end = header(head, body, "connection");
    size_t len = length ? strtoull(length, NULL, 10) : 0;
    c->close_after = end && !strncasecmp(end, "close", 5);
    if (header(head, body, "transfer-encoding")) {
        c->close_after = true;
        return refuse(fd, "411 Length Required", "send Content-Length"), false;
    }
    if (len > MAX_BODY) {
        c->close_after = true;
        return refuse(fd, "413 Content Too Large", "longer than 64 MiB"), false;
    }
    if (c->in_len < (size_t)(body - head) + len) return false;

    bool alive;
    char models[512];
    if (!strncmp(head, "POST /v1/completions ", 21))
        alive = begin_stream(fd, head, body, len, false, kernel_ns);
    else if (!strncmp(head, "POST /generate ", 15))
        alive = begin_stream(fd, head, body, len, true, kernel_ns);
    else if (!strncmp(head, "GET /v1/models ", 15)) {
        snprintf(models, sizeof models, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\"}]}", opt.model);
        alive = answer(fd, "200 OK", models);
    } else if (!strncmp(head, "GET /health ", 12))
        alive = answer(fd, "200 OK", "{}");
    else
        alive = refuse(fd, "404 Not Found", "the truth serves POST /v1/completions and /generate");
    if (!alive) return false;

    size_t used = (body - head) + len;
    c->in_len -= used;
    memmove(c->in, c->in + used, c->in_len);
    return true;
}

static bool read_requests(int fd) {
    struct connection *c = &conns[fd];
    while (c->open && !c->streaming && !c->queued && c->in_len) /* pipelined ones wait for their turn */
        if (!take_request(fd, 0)) return false;
    return true;
}

static void on_readable(int fd) {
    static char bytes[READ_SIZE], control[128];
    struct connection *c = &conns[fd];
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(fd, &m, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        close_connection(fd);
        return;
    }
    int64_t kernel_ns = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(h), sizeof t);
            kernel_ns = t.tv_sec * 1000000000LL + t.tv_nsec;
        }
    if (c->in_cap <= c->in_len + got) { /* room for the 0 that ends a number at the end of a torn body */
        c->in_cap = c->in_len + got + 4096;
        c->in = grown(c->in, c->in_cap);
    }
    memcpy(c->in + c->in_len, bytes, got);
    c->in_len += got;
    c->in[c->in_len] = 0;
    if (!c->streaming && !c->queued && take_request(fd, kernel_ns)) read_requests(fd);
}

static void on_connect(int listener) {
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= max_conns) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        conns[fd].open = true;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    }
}

/* ---- the end -------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void report(void) {
    int64_t *late = malloc((num_entries + 1) * sizeof *late);
    uint64_t blocked = 0;
    if (!late) die("memory");
    late[0] = 0;
    for (size_t i = 0; i < num_entries; i++) {
        late[i] = entries[i].mono_ns - entries[i].due_ns;
        blocked += entries[i].flags & BLOCKED;
    }
    qsort(late, num_entries, sizeof *late, ascending);
    size_t last = num_entries ? num_entries - 1 : 0;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"requests\": %zu, \"writes\": %zu, \"writes_not_logged\": %zu, \"writes_blocked\": %lu, "
           "\"late_p50_ms\": %.4f, \"late_p99_ms\": %.4f, \"late_max_ms\": %.4f, \"cpu_s\": %.3f}\n",
           num_requests, num_entries, num_lost, (unsigned long)blocked, late[last / 2] / 1e6,
           late[(size_t)(last * 0.99)] / 1e6, late[last] / 1e6, cpu_s);
    if (late[(size_t)(last * 0.99)] > opt.itl_ns / 2)
        fprintf(stderr, "truth: could not keep its own schedule: 1 %% of the writes were more than half an ITL late\n");
    if (num_lost) fprintf(stderr, "truth: the log was full: raise --log-capacity\n");
    free(late);
}

static void put(FILE *file, const void *data, size_t size) {
    if (size && fwrite(data, size, 1, file) != 1) die(opt.log);
}

static void write_log(void) {
    if (!opt.log) return;
    FILE *file = fopen(opt.log, "wb");
    if (!file) die(opt.log);
    char magic[32] = "prefixlab-truth-1\n";
    uint64_t counts[3] = {num_requests, num_entries, num_lost};
    put(file, magic, sizeof magic);
    put(file, counts, sizeof counts);
    put(file, requests, num_requests * sizeof *requests);
    put(file, entries, num_entries * sizeof *entries);
    if (fclose(file)) die(opt.log);
}

/* ---- the loop ------------------------------------------------------------------------------------- */

static void read_options(int argc, char **argv) {
    static const struct option OPTIONS[] = {
        {"port", 1, 0, 'p'},  {"ttft-ms", 1, 0, 't'},  {"itl-ms", 1, 0, 'i'},        {"tokens", 1, 0, 'n'},
        {"core", 1, 0, 'c'},  {"slots", 1, 0, 's'},    {"lockstep", 0, 0, 'k'},      {"early-headers", 0, 0, 'e'},
        {"log", 1, 0, 'l'},   {"model", 1, 0, 'm'},    {"log-capacity", 1, 0, 'C'},  {0, 0, 0, 0},
    };
    for (int o; (o = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;) switch (o) {
            case 'p': opt.port = atoi(optarg); break;
            case 't': opt.ttft_ns = atof(optarg) * 1e6; break;
            case 'i': opt.itl_ns = atof(optarg) * 1e6; break;
            case 'n': opt.tokens = strtoul(optarg, NULL, 10); break;
            case 'c': opt.core = atoi(optarg); break;
            case 's': opt.slots = strtoul(optarg, NULL, 10); break;
            case 'k': opt.lockstep = true; break;
            case 'e': opt.early_headers = true; break;
            case 'l': opt.log = optarg; break;
            case 'm': opt.model = optarg; break;
            case 'C': opt.log_capacity = strtoull(optarg, NULL, 10); break;
            default: exit(2);
        }
    if (opt.itl_ns <= 0 || opt.ttft_ns < 0 || strlen(opt.model) > 200) {
        fprintf(stderr, "truth: --itl-ms must be positive, --ttft-ms not negative, --model at most 200 long\n");
        exit(2);
    }
}

static int listen_on(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one); /* now, so that the kernel stamps from the start */
    if (fd < 0 || bind(fd, (void *)&a, sizeof a) || listen(fd, 65535)) die("listen");
    getsockname(fd, (void *)&a, &size);
    printf("listening %d\n", ntohs(a.sin_port));
    fflush(stdout);
    return fd;
}

static void prepare(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    max_conns = files.rlim_cur > 1 << 20 ? 1 << 20 : (int)files.rlim_cur;
    if (opt.core >= 0) {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET(opt.core, &cores);
        if (sched_setaffinity(0, sizeof cores, &cores)) die("--core");
    }
    queue_cap = 4 * (size_t)max_conns; /* void entries of closed connections may linger */
    conns = calloc(max_conns, sizeof *conns);
    heap = malloc(queue_cap * sizeof *heap);
    waiting = malloc(queue_cap * sizeof *waiting);
    entries = mmap(NULL, opt.log_capacity * sizeof *entries, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0); /* no page fault while writing */
    if (!conns || !heap || !waiting || entries == MAP_FAILED) die("memory");
}

static void sleep_until_next(void) {
    struct itimerspec next = {0};
    if (heap_len) { /* a time in the past fires at once */
        next.it_value.tv_sec = heap[0].due_ns / 1000000000LL;
        next.it_value.tv_nsec = heap[0].due_ns % 1000000000LL;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &next, NULL);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    prepare();
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    const int signals = signalfd(-1, &stop, SFD_NONBLOCK), listener = listen_on(opt.port);
    ep = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    for (int *fd = (int[]){listener, timer, signals, -1}; *fd >= 0; fd++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = *fd};
        if (epoll_ctl(ep, EPOLL_CTL_ADD, *fd, &e)) die("epoll_ctl");
    }
    started_ns = clock_ns(CLOCK_MONOTONIC);

    for (;;) {
        struct epoll_event ready[512];
        int n = epoll_wait(ep, ready, 512, -1);
        for (int i = 0; i < n; i++) {
            const int fd = ready[i].data.fd;
            uint64_t expirations;
            if (fd == listener)
                on_connect(listener);
            else if (fd == timer)
                (void)!read(timer, &expirations, sizeof expirations);
            else if (fd == signals) {
                write_log();
                report();
                return 0;
            } else {
                if (ready[i].events & EPOLLOUT && conns[fd].out_len) write_rest(fd);
                if (ready[i].events & ~EPOLLOUT && conns[fd].open) on_readable(fd);
            }
        }
        for (int turn = 0; turn < WRITES_PER_TURN && heap_len; turn++) {
            if (heap[0].due_ns > clock_ns(CLOCK_MONOTONIC)) break;
            struct deadline d = pop();
            if (conns[d.fd].generation == d.generation) write_token(d);
        }
        sleep_until_next();
    }
}
