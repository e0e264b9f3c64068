// SPDX-License-Identifier: GPL-2.0-only
// The least that drives a queue pair of vqlane.ko, and says how it went: for the programs of this
// folder that test the module itself, without the daemon. Nothing here is shared with the daemon,
// so that one mistake is not made on both sides.
#ifndef VQLANE_TESTS_VM_LANE_H
#define VQLANE_TESTS_VM_LANE_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/vqlane.h>

#define PAGE 4096u

static int failures;

__attribute__((unused, format(printf, 3, 4))) static bool say(const char* name, bool is_ok,
                                                              const char* why, ...) {
    va_list args;

    printf("%s %s", is_ok ? "ok" : "not ok", name);
    if (!is_ok) {
        printf(": ");
        va_start(args, why);
        vprintf(why, args);
        va_end(args);
        failures++;
    }
    printf("\n");
    fflush(stdout);
    return is_ok;
}

// A property, by its name.
#define CHECK(name, cond)                                                                          \
    __extension__({                                                                                \
        bool holds_ = (errno = 0, cond);                                                           \
        say(name, holds_, "line %d: %s (errno %s)", __LINE__, #cond, strerror(errno));             \
    })
// Something without which the program makes no sense.
#define NEED(cond)                                                                                 \
    do {                                                                                           \
        errno = 0;                                                                                 \
        if (!(cond)) {                                                                             \
            say("what the tests need", false, "line %d: %s (errno %s)", __LINE__, #cond,           \
                strerror(errno));                                                                  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static inline double now_s(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline void sleep_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};

    nanosleep(&t, NULL);
}

// The error of a call that has to fail; 0 if it did not.
static inline int error_of(long result) {
    return result < 0 ? errno : 0;
}

// ---- memory that may vanish: SIGBUS on touch ----

static sigjmp_buf fault_jump;
static volatile sig_atomic_t fault_expected;

static void on_fault(int signal) {
    if (!fault_expected) {
        static const char text[] = "not ok a fault that nobody expected: see the signal\n";

        if (write(1, text, sizeof(text) - 1) < 0)
            _exit(3);
        _exit(128 + signal);
    }
    siglongjmp(fault_jump, signal);
}

static inline void catch_faults(void) {
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};

    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
}

// The signal that reading (or writing) a word there gives; 0: none. One thread only.
static inline int touch(volatile void* at, bool is_write) {
    int signal = sigsetjmp(fault_jump, 1);

    if (!signal) {
        uint32_t value;

        fault_expected = 1;
        value = *(volatile uint32_t*)at;
        if (is_write)
            *(volatile uint32_t*)at = value;
    }
    fault_expected = 0;
    return signal;
}

// ---- a queue pair ----

struct sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved[2];
    uint64_t prp1;
    uint64_t prp2;
    uint64_t lba;
    uint32_t count; // of blocks, less one; and flags
    uint32_t cdw13[3];
};

struct cqe {
    uint32_t result;
    uint32_t reserved;
    uint16_t sq_head;
    uint16_t sq_id;
    uint16_t cid;
    uint16_t status; // bit 0: phase
};

enum { LANE_WRITE = 1, LANE_READ = 2 };

struct lane {
    int fd;
    struct vql_qpair_create info;
    struct sqe* sq;
    volatile struct cqe* cq;
    volatile struct vql_qpair_status* status;
    uint8_t* pool;
    volatile uint32_t *sq_doorbell, *cq_doorbell;
    volatile uint32_t *sq_shadow, *cq_shadow; // NULL: none
    const volatile uint32_t *sq_event, *cq_event;
    uint32_t tail, head, phase;
    uint16_t cid;
    bool has_shadow;    // doorbells: then they have to be used
    uint64_t doorbells; // rung
};

static inline void* lane_map(int fd, uint64_t offset, size_t bytes, int prot) {
    return mmap(NULL, (bytes + PAGE - 1) / PAGE * PAGE, prot, MAP_SHARED, fd, (off_t)offset);
}

static inline int lane_create(struct lane* lane, int file, uint32_t depth, uint32_t pool_pages) {
    struct vql_ctrl_info ctrl_info = {.size = sizeof(ctrl_info)};

    *lane = (struct lane){.phase = 1, .fd = -1};
    if (ioctl(file, VQL_IOC_CTRL_INFO, &ctrl_info))
        return -1;
    lane->has_shadow = ctrl_info.flags & VQL_CTRL_SHADOW;
    lane->info.size = sizeof(lane->info);
    lane->info.depth = depth;
    lane->info.pool_pages = pool_pages;
    lane->fd = ioctl(file, VQL_IOC_QPAIR_CREATE, &lane->info);
    return lane->fd;
}

static inline bool lane_map_all(struct lane* lane) {
    const int rw = PROT_READ | PROT_WRITE;
    uint8_t* doorbells = lane_map(lane->fd, VQL_QPAIR_MAP_DOORBELL, PAGE, rw);

    lane->status = lane_map(lane->fd, VQL_QPAIR_MAP_STATUS, PAGE, PROT_READ);
    lane->sq = lane_map(lane->fd, VQL_QPAIR_MAP_SQ, lane->info.depth * 64, rw);
    lane->cq = lane_map(lane->fd, VQL_QPAIR_MAP_CQ, lane->info.depth * 16, rw);
    lane->pool = lane_map(lane->fd, VQL_QPAIR_MAP_POOL, lane->info.pool_pages * PAGE, rw);
    if (doorbells == MAP_FAILED || lane->status == MAP_FAILED || lane->sq == MAP_FAILED ||
        lane->cq == MAP_FAILED || (lane->info.pool_pages && lane->pool == MAP_FAILED))
        return false;
    lane->sq_doorbell = (void*)(doorbells + lane->info.sq_doorbell);
    lane->cq_doorbell = (void*)(doorbells + lane->info.sq_doorbell + lane->info.doorbell_stride);
    if (lane->has_shadow) {
        uint8_t* shadow = lane_map(lane->fd, VQL_QPAIR_MAP_SHADOW, PAGE, rw);
        uint8_t* event = lane_map(lane->fd, VQL_QPAIR_MAP_EVENTIDX, PAGE, PROT_READ);

        if (shadow == MAP_FAILED || event == MAP_FAILED)
            return false;
        lane->sq_shadow = (void*)(shadow + lane->info.sq_shadow);
        lane->cq_shadow = (void*)(shadow + lane->info.sq_shadow + lane->info.doorbell_stride);
        lane->sq_event = (void*)(event + lane->info.sq_shadow);
        lane->cq_event = (void*)(event + lane->info.sq_shadow + lane->info.doorbell_stride);
    }
    return true;
}

// Not the file: see close(lane->fd).
static inline void lane_unmap(struct lane* lane) {
    uintptr_t page = ~(uintptr_t)(PAGE - 1);

    munmap((void*)lane->status, PAGE);
    munmap(lane->sq, (lane->info.depth * 64 + PAGE - 1) & page);
    munmap((void*)lane->cq, (lane->info.depth * 16 + PAGE - 1) & page);
    munmap((void*)((uintptr_t)lane->sq_doorbell & page), PAGE);
    if (lane->info.pool_pages)
        munmap(lane->pool, lane->info.pool_pages * PAGE);
    if (lane->sq_shadow) {
        munmap((void*)((uintptr_t)lane->sq_shadow & page), PAGE);
        munmap((void*)((uintptr_t)lane->sq_event & page), PAGE);
    }
}

// NVMe 2.0 §5.7: the doorbell is rung only if the new value passes the event index.
static inline void lane_ring(struct lane* lane, volatile uint32_t* doorbell,
                             volatile uint32_t* shadow, const volatile uint32_t* event,
                             uint32_t value) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (shadow) {
        uint32_t old = *shadow;

        *shadow = value;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if ((uint16_t)(value - *event - 1) >= (uint16_t)(value - old))
            return;
    }
    *doorbell = value;
    lane->doorbells++;
}

static inline uint16_t lane_submit(struct lane* lane, uint8_t opcode, uint32_t nsid, uint64_t lba,
                                   uint32_t blocks, uint64_t dma) {
    lane->sq[lane->tail] = (struct sqe){
        .opcode = opcode,
        .cid = ++lane->cid,
        .nsid = nsid,
        .prp1 = dma,
        .lba = lba,
        .count = blocks - 1,
    };
    lane->tail = (lane->tail + 1) % lane->info.depth;
    lane_ring(lane, lane->sq_doorbell, lane->sq_shadow, lane->sq_event, lane->tail);
    return lane->cid;
}

// One completion: true, and its status.
static inline bool lane_reap(struct lane* lane, uint16_t* status) {
    uint16_t word = __atomic_load_n(&lane->cq[lane->head].status, __ATOMIC_ACQUIRE);

    if ((word & 1) != lane->phase)
        return false;
    *status = word >> 1;
    lane->head = (lane->head + 1) % lane->info.depth;
    lane->phase ^= !lane->head;
    lane_ring(lane, lane->cq_doorbell, lane->cq_shadow, lane->cq_event, lane->head);
    return true;
}

// The status of the next completion, polled for; -1 when none came in time.
static inline int lane_wait(struct lane* lane, double seconds) {
    double end = now_s() + seconds;
    uint16_t status;

    while (!lane_reap(lane, &status))
        if (now_s() > end)
            return -1;
    return status;
}

static inline int lane_io(struct lane* lane, uint8_t opcode, uint32_t nsid, uint64_t lba,
                          uint32_t blocks, uint64_t dma) {
    lane_submit(lane, opcode, nsid, lba, blocks, dma);
    return lane_wait(lane, 10);
}

// ---- the controller that a program is about ----

enum { DEPTH = 16, POOL = 8 };

static char bdf[32], node[64];
static int ctrl = -1;
static uint32_t block; // bytes
static uint64_t blocks;

// The first controller of the command line, and its first namespace.
static inline void open_ctrl(int argc, char** argv) {
    struct vql_ns_info ns = {.size = sizeof(ns), .nsid = 1};

    NEED(argc > 1);
    catch_faults();
    snprintf(bdf, sizeof(bdf), "%s", argv[1]);
    snprintf(node, sizeof(node), "/dev/vqlane/nvme-%s", bdf);
    ctrl = open(node, O_RDWR);
    NEED(ctrl >= 0);
    NEED(!ioctl(ctrl, VQL_IOC_NS_INFO, &ns));
    block = ns.block_bytes;
    blocks = ns.blocks;
}

static inline struct vql_ctrl_info get_info(void) {
    struct vql_ctrl_info info = {.size = sizeof(info)};

    NEED(!ioctl(ctrl, VQL_IOC_CTRL_INFO, &info));
    return info;
}

static inline short events_of(int fd, short wanted, int ms) {
    struct pollfd p = {.fd = fd, .events = wanted};

    return poll(&p, 1, ms) < 0 ? -1 : p.revents;
}

static inline struct lane new_lane(void) {
    struct lane lane;

    NEED(lane_create(&lane, ctrl, DEPTH, POOL) >= 0);
    NEED(lane_map_all(&lane));
    return lane;
}

static inline void end_lane(struct lane* lane) {
    lane_unmap(lane);
    close(lane->fd);
}

// Data that tells where it is from.
static inline void fill(uint8_t* at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word = (seed * 0x9E3779B97F4A7C15ull) ^ i * 0xD1B54A32D192ED03ull;

        memcpy(at + i * 8, &word, 8);
    }
}

// Writes a block, reads it back into another page, compares.
static inline bool works(struct lane* lane, uint64_t lba, uint64_t seed) {
    uint8_t *to = lane->pool, *from = lane->pool + PAGE;

    fill(to, block, seed);
    memset(from, 0xEE, PAGE);
    return lane_io(lane, LANE_WRITE, 1, lba, 1, lane->info.pool_dma) == 0 &&
           lane_io(lane, LANE_READ, 1, lba, 1, lane->info.pool_dma + PAGE) == 0 &&
           !memcmp(to, from, block) && (block == PAGE || from[block] == 0xEE);
}

static inline bool new_lane_works(void) {
    struct lane lane = new_lane();
    bool is_good = works(&lane, 7, (uint64_t)lane.fd);

    end_lane(&lane);
    return is_good;
}

static inline int map_error(int fd, uint64_t offset, size_t bytes, int prot, int flags) {
    void* at = mmap(NULL, bytes, prot, flags, fd, (off_t)offset);

    if (at == MAP_FAILED)
        return errno;
    munmap(at, bytes);
    return 0;
}

static inline void check_ended(struct lane* lane, uint32_t state) {
    CHECK("its state tells", lane->status->state == state);
    CHECK("it hangs up", events_of(lane->fd, POLLIN, 0) & POLLHUP);
    CHECK("queues and doorbells are gone",
          touch(lane->sq_doorbell, true) == SIGBUS && touch(lane->sq, true) == SIGBUS &&
              touch(lane->cq, false) == SIGBUS && touch(lane->pool, false) == SIGBUS);
    CHECK("and not to be had again",
          map_error(lane->fd, VQL_QPAIR_MAP_DOORBELL, PAGE, PROT_READ, MAP_SHARED) == ENODEV);
    CHECK("it is not armed, aborted, attached any more",
          error_of(ioctl(lane->fd, VQL_IOC_QPAIR_ARM)) == ENODEV &&
              error_of(ioctl(lane->fd, VQL_IOC_QPAIR_ABORT, 1)) == ENODEV);
}

#endif
