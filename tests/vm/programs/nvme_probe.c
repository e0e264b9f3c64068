// SPDX-License-Identifier: GPL-2.0-only
// nvme_probe BDF [TEST…]: what vqlane.ko says of a controller, and what its queue pairs do, from
// the outside. Overwrites the drive.
#include <sys/prctl.h>
#include <sys/wait.h>

#include "lane.h"

// ---- what it says ----

// What the drive has, by environment: so many namespaces, and of those the last ones, to be
// refused: one with metadata, one with protection information, one with blocks of 1024 bytes; or
// none.
static uint32_t from_environment(const char* name, uint32_t otherwise) {
    return getenv(name) ? (uint32_t)atoi(getenv(name)) : otherwise;
}
static uint32_t wanted_namespaces(void) {
    return from_environment("VQL_NAMESPACES", 1);
}
static uint32_t wanted_refusals(void) {
    return from_environment("VQL_REFUSALS", 0);
}

static void test_info(void) {
    struct vql_ctrl_info info = get_info();
    struct vql_ctrl_info bad = {.size = sizeof(bad), .reserved = {0, 1}};
    const char* wanted = getenv("VQL_IOMMU");
    int file = open(node, O_RDWR);

    CHECK("the controller is live", info.state == VQL_CTRL_LIVE && !strcmp(info.bdf, bdf));
    CHECK("it has queue pairs, all free", info.max_qpairs && info.free_qpairs == info.max_qpairs);
    CHECK("its limits make sense", info.max_depth >= 64 && info.max_depth <= VQL_MAX_QPAIR_DEPTH &&
                                       info.max_transfer >= PAGE &&
                                       info.namespaces == wanted_namespaces());
    // QEMU's: 255 ranges, each of what its block layer can take in the largest blocks of the drive.
    CHECK("and those of discards", info.dmrl == 255 && info.dmrsl >= 0x7ffffe00 / 4096 &&
                                       info.dmrsl <= 0x7ffffe00 / 512 &&
                                       info.dmsl == (uint64_t)info.dmrl * info.dmrsl && !info.wzsl);
    if (wanted)
        CHECK("it knows whether DMA is translated",
              !(info.flags & VQL_CTRL_TRANSLATED) == !!strcmp(wanted, "strict"));
    CHECK("reserved fields are refused", error_of(ioctl(ctrl, VQL_IOC_CTRL_INFO, &bad)) == EINVAL);
    bad = (struct vql_ctrl_info){.size = sizeof(bad) + 8};
    CHECK("a larger structure is refused", error_of(ioctl(ctrl, VQL_IOC_CTRL_INFO, &bad)) == E2BIG);
    bad.size = 4;
    CHECK("a smaller one, too", error_of(ioctl(ctrl, VQL_IOC_CTRL_INFO, &bad)) == EINVAL);
    CHECK("so is one that is not there", error_of(ioctl(ctrl, VQL_IOC_CTRL_INFO, 8)) == EFAULT);
    CHECK("an unknown command is refused",
          error_of(ioctl(ctrl, _IO(VQL_IOC_MAGIC, 0x7f))) == ENOTTY);
    NEED(file >= 0);
    CHECK("a new file has news, and then none", events_of(file, POLLPRI, 0) == POLLPRI &&
                                                    !ioctl(file, VQL_IOC_CTRL_INFO, &info) &&
                                                    !events_of(file, POLLPRI, 0));
    close(file);
}

static void test_namespace(void) {
    struct vql_ns_info ns = {.size = sizeof(ns), .nsid = 1};

    CHECK("a namespace is known", !ioctl(ctrl, VQL_IOC_NS_INFO, &ns));
    CHECK("with blocks of 512 or 4096", ns.block_bytes == 512 || ns.block_bytes == 4096);
    CHECK("and a size", ns.blocks * ns.block_bytes >= 64 << 20 && !ns.reason[0]);
    for (uint32_t nsid = 0; nsid != 3; nsid++) {
        static const uint32_t none[] = {0, 99, 0xffffffff};

        ns = (struct vql_ns_info){.size = sizeof(ns), .nsid = none[nsid]};
        CHECK("others are not there", error_of(ioctl(ctrl, VQL_IOC_NS_INFO, &ns)) == ENOENT);
    }
    ns = (struct vql_ns_info){.size = sizeof(ns), .nsid = 1, .flags = 1};
    CHECK("unknown flags are refused", error_of(ioctl(ctrl, VQL_IOC_NS_INFO, &ns)) == EINVAL);
    ns = (struct vql_ns_info){.size = sizeof(ns), .nsid = 1, .reserved = 1};
    CHECK("reserved fields, too", error_of(ioctl(ctrl, VQL_IOC_NS_INFO, &ns)) == EINVAL);
    for (uint32_t i = 0; i < wanted_refusals(); i++) {
        static const char* const reasons[] = {"8 bytes of metadata",
                                              "protection information (type 1)",
                                              "blocks of 2^10 bytes: only 512 and 4096"};

        NEED(i < sizeof(reasons) / sizeof(*reasons));
        ns = (struct vql_ns_info){.size = sizeof(ns),
                                  .nsid = wanted_namespaces() - wanted_refusals() + 1 + i};
        CHECK("one that cannot be served is refused, and why",
              error_of(ioctl(ctrl, VQL_IOC_NS_INFO, &ns)) == EOPNOTSUPP &&
                  strstr(ns.reason, reasons[i]));
    }
}

static int admin_read(uint32_t what, uint32_t nsid, uint32_t bytes, void* data) {
    struct vql_admin_read req = {sizeof(req), what, nsid, bytes, (uintptr_t)data};

    return error_of(ioctl(ctrl, VQL_IOC_ADMIN_READ, &req));
}

static void test_admin_read(void) {
    struct vql_ctrl_info info = get_info();
    uint8_t data[PAGE] = {0};
    uint32_t first;

    CHECK("Identify Controller", !admin_read(VQL_ADMIN_IDENTIFY_CTRL, 0, PAGE, data) &&
                                     !memcmp(data + 4, info.serial, VQL_SERIAL_BYTES));
    CHECK("Identify Namespace",
          !admin_read(VQL_ADMIN_IDENTIFY_NS, 1, PAGE, data) && !memcmp(data, &blocks, 8));
    CHECK("the active namespaces",
          !admin_read(VQL_ADMIN_ACTIVE_NS, 0, PAGE, data) && (memcpy(&first, data, 4), first == 1));
    CHECK("the SMART log has a temperature",
          !admin_read(VQL_ADMIN_SMART, 0xffffffff, 512, data) && data[1] + data[2] * 256 > 200);
    CHECK("nothing else is read", admin_read(4, 0, PAGE, data) == EINVAL);
    CHECK("nor more than there is", admin_read(VQL_ADMIN_SMART, 0xffffffff, PAGE, data) == EINVAL &&
                                        admin_read(VQL_ADMIN_IDENTIFY_CTRL, 0, 64, data) == EINVAL);
    CHECK("nor to nowhere", admin_read(VQL_ADMIN_IDENTIFY_CTRL, 0, PAGE, (void*)8) == EFAULT);
    CHECK("an identifier too much is refused",
          admin_read(VQL_ADMIN_IDENTIFY_CTRL, 1, PAGE, data) == EINVAL);
}

// ---- what it does ----

static void test_io(void) {
    struct lane lane = new_lane();
    bool all = true;
    int n, bad;

    for (n = 0; n < 5 * DEPTH && all; n++) // both rings wrap, several times
        all = works(&lane, (uint64_t)n * 3, (uint64_t)n + 1);
    CHECK("blocks come back as they were written", all);
    for (n = 0; n < 40 && all; n++) {
        struct lane other = new_lane();

        fill(other.pool, block, (uint64_t)n + 1);
        all = !lane_io(&other, LANE_READ, 1, (uint64_t)n * 3, 1, other.info.pool_dma + PAGE) &&
              !memcmp(other.pool, other.pool + PAGE, block);
        end_lane(&other);
    }
    CHECK("also for other queue pairs", all);
    for (n = 0; n < DEPTH - 1; n++)
        lane_submit(&lane, LANE_READ, 1, (uint64_t)n, 1, lane.info.pool_dma + PAGE);
    for (bad = 0; n && !bad; n--)
        bad = lane_wait(&lane, 10);
    CHECK("a full queue is served", !bad);
    CHECK("a bad block address is an error",
          (lane_io(&lane, LANE_READ, 1, blocks, 1, lane.info.pool_dma) & 0x7ff) == 0x80);
    CHECK("and the queue goes on", works(&lane, 1, 99));
    end_lane(&lane);
}

static void test_interrupt(void) {
    struct lane lane = new_lane();
    bool all = true;

    NEED(lane.info.has_interrupt);
    CHECK("without arming nobody is interrupted",
          works(&lane, 2, 1) && !events_of(lane.fd, POLLIN, 100));
    for (int i = 0; i < 20 && all; i++) {
        all = !ioctl(lane.fd, VQL_IOC_QPAIR_ARM);
        // What was completed before may be told now, once: then arming again is quiet.
        if (i == 0 && events_of(lane.fd, POLLIN, 50) == POLLIN)
            all = !ioctl(lane.fd, VQL_IOC_QPAIR_ARM);
        all = all && !events_of(lane.fd, POLLIN, i ? 0 : 50);
        lane_submit(&lane, LANE_READ, 1, 0, 1, lane.info.pool_dma);
        all = all && events_of(lane.fd, POLLIN, 5000) == POLLIN && lane_wait(&lane, 5) == 0;
        all = all && events_of(lane.fd, POLLIN, 0) == POLLIN; // until it is armed again
    }
    CHECK("armed, a completion wakes the sleeper, each time", all);
    end_lane(&lane);
}

static void test_mmap(void) {
    struct lane lane = new_lane();
    const int rw = PROT_READ | PROT_WRITE;
    int fd = lane.fd, bad = 0, n;
    void* at;

    CHECK("a private mapping is refused",
          map_error(fd, VQL_QPAIR_MAP_SQ, PAGE, rw, MAP_PRIVATE) == EINVAL);
    CHECK("so is one of a wrong length",
          map_error(fd, VQL_QPAIR_MAP_SQ, 2 * PAGE, rw, MAP_SHARED) == EINVAL &&
              map_error(fd, VQL_QPAIR_MAP_DOORBELL, 2 * PAGE, rw, MAP_SHARED) == EINVAL &&
              map_error(fd, VQL_QPAIR_MAP_POOL, (POOL + 1) * PAGE, rw, MAP_SHARED) == EINVAL &&
              map_error(fd, VQL_QPAIR_MAP_POOL, (POOL - 1) * PAGE, rw, MAP_SHARED) == EINVAL);
    CHECK("so is an offset inside a part",
          map_error(fd, VQL_QPAIR_MAP_POOL + PAGE, (POOL - 1) * PAGE, rw, MAP_SHARED) == EINVAL);
    for (n = 1; n < 200; n++) {
        uint64_t offset = (uint64_t)n << 31 | (n % 3 ? 0 : PAGE);

        if (n % 2 || n >= 14)
            bad += map_error(fd, offset, PAGE, rw, MAP_SHARED) == 0;
    }
    CHECK("so are parts that do not exist", !bad);
    CHECK("so are offsets out of all bounds",
          map_error(fd, 1ull << 62, PAGE, rw, MAP_SHARED) &&
              map_error(fd, VQL_QPAIR_MAP_DMA(100000), PAGE, PROT_READ, MAP_SHARED) == EINVAL);
    CHECK("the status page is read only",
          map_error(fd, VQL_QPAIR_MAP_STATUS, PAGE, rw, MAP_SHARED) == EACCES &&
              mprotect((void*)lane.status, PAGE, rw) && errno == EACCES);
    at = mremap((void*)lane.cq, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
    CHECK("a mapping does not grow", at == MAP_FAILED);
    NEED(!munmap(lane.pool + PAGE, PAGE));
    CHECK("a mapping with a hole works around it",
          touch(lane.pool + PAGE, false) == SIGSEGV && !touch(lane.pool + 2 * PAGE, true) &&
              lane_io(&lane, LANE_READ, 1, 0, 1, lane.info.pool_dma + 2 * PAGE) == 0);
    lane_unmap(&lane);
    close(fd);
}

static int create_error(struct vql_qpair_create req) {
    int fd;

    req.size = sizeof(req);
    fd = ioctl(ctrl, VQL_IOC_QPAIR_CREATE, &req);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static void test_create(void) {
    struct vql_ctrl_info info = get_info();
    struct lane lanes[256];
    uint32_t n, k, bad = 0;
    struct lane last;

    CHECK("bad wishes are refused",
          create_error((struct vql_qpair_create){.depth = 1}) == EINVAL &&
              create_error((struct vql_qpair_create){.depth = info.max_depth + 1}) == EINVAL &&
              create_error((struct vql_qpair_create){.depth = 8, .flags = 1}) == EINVAL &&
              create_error((struct vql_qpair_create){.depth = 8, .reserved = 1}) == EINVAL &&
              create_error((struct vql_qpair_create){
                  .depth = 8, .pool_pages = VQL_MAX_POOL_PAGES + 1}) == EINVAL);
    CHECK("the largest is had", !create_error((struct vql_qpair_create){
                                    .depth = info.max_depth, .pool_pages = VQL_MAX_POOL_PAGES}));
    CHECK("the smallest, too", !create_error((struct vql_qpair_create){.depth = 2}));
    for (n = 0; n < info.max_qpairs; n++)
        lanes[n] = new_lane();
    CHECK("when all are taken there is no more", get_info().free_qpairs == 0 &&
                                                     lane_create(&last, ctrl, DEPTH, POOL) < 0 &&
                                                     errno == ENOSPC);
    for (n = 0; n < info.max_qpairs; n++)
        for (bad += !works(&lanes[n], n, n), k = 0; k < n; k++)
            bad += lanes[n].info.qid == lanes[k].info.qid;
    CHECK("all of them work, each with a number of its own", !bad);
    for (n = 0; n < info.max_qpairs; n++)
        bad += error_of(ioctl(lanes[n].fd, VQL_IOC_QPAIR_ARM, 0)) !=
               (lanes[n].info.has_interrupt ? 0 : EOPNOTSUPP);
    CHECK("those that have an interrupt can be armed", !bad);
    end_lane(&lanes[0]);
    last = new_lane();
    CHECK("a number is used again", last.info.qid == lanes[0].info.qid && works(&last, 5, 5));
    end_lane(&last);
    for (n = 1; n < info.max_qpairs; n++)
        end_lane(&lanes[n]);
    CHECK("at the end all are free", get_info().free_qpairs == info.max_qpairs);
}

static void test_shadow(void) {
    bool has = get_info().flags & VQL_CTRL_SHADOW;
    struct lane lane;
    uint64_t rung = 0;
    bool all = true;
    int n, status;

    NEED(lane_create(&lane, ctrl, DEPTH, POOL) >= 0);
    if (!has) {
        CHECK("without shadow doorbells none are mapped",
              map_error(lane.fd, VQL_QPAIR_MAP_SHADOW, PAGE, PROT_READ, MAP_SHARED) == EINVAL);
        close(lane.fd);
        return;
    }
    for (int round = 0; round < 3 && all; round++) {
        NEED(lane_map_all(&lane));
        for (n = 0; n < 3 * DEPTH && all; n++)
            all = works(&lane, (uint64_t)n, (uint64_t)n + 7);
        for (n = 0; n < DEPTH - 1; n++)
            lane_submit(&lane, LANE_READ, 1, (uint64_t)n, 1, lane.info.pool_dma);
        for (; n; n--) {
            status = lane_wait(&lane, 10);
            all = all && !status;
        }
        rung += lane.doorbells;
        end_lane(&lane);
        // The next has the same identifier, and must not take the last one's values for its own.
        NEED(lane_create(&lane, ctrl, DEPTH, POOL) >= 0);
    }
    CHECK("with shadow doorbells commands go through", all);
    printf("# doorbells rung for %d commands: %lu of %d\n", 3 * (6 * DEPTH + DEPTH - 1),
           (unsigned long)rung, 6 * (6 * DEPTH + DEPTH - 1));
    CHECK("the event indices are read only",
          map_error(lane.fd, VQL_QPAIR_MAP_EVENTIDX, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED) ==
              EACCES);
    close(lane.fd);
}

static void test_abort(void) {
    struct lane lane = new_lane();

    CHECK("a command that is not there can be aborted", !ioctl(lane.fd, VQL_IOC_QPAIR_ABORT, 77));
    CHECK("a number that cannot be is refused",
          error_of(ioctl(lane.fd, VQL_IOC_QPAIR_ABORT, 0x10000)) == EINVAL);
    CHECK("the queue pair goes on", works(&lane, 3, 3));
    end_lane(&lane);
}

// ---- memory ----

static void test_mspace(void) {
    enum { PAGES = 700 };
    uint8_t* memory =
        mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct vql_mregion region = {
        .guest = 1 << 20, .bytes = PAGES * PAGE, .user = (uintptr_t)memory};
    struct vql_mspace_create create = {
        .size = sizeof(create), .nregions = 1, .regions = (uintptr_t)&region};
    struct vql_qpair_attach attach = {.size = sizeof(attach)};
    struct vql_qpair_detach detach = {.size = sizeof(detach)};
    int control = open("/dev/vqlane/control", O_RDWR), mspace, n, bad = 0;
    struct lane lane = new_lane(), other = new_lane();
    const uint64_t* table;

    NEED(control >= 0 && memory != MAP_FAILED);
    mspace = ioctl(control, VQL_IOC_MSPACE_CREATE, &create);
    NEED(mspace >= 0);
    attach.mspace_fd = mspace;
    CHECK("memory is attached",
          !ioctl(lane.fd, VQL_IOC_QPAIR_ATTACH, &attach) && attach.pages == PAGES);
    detach.slot = attach.slot;
    table = lane_map(lane.fd, VQL_QPAIR_MAP_DMA(attach.slot), PAGES * 8, PROT_READ);
    NEED(table != MAP_FAILED);
    for (n = 0; n < PAGES; n += 37) {
        fill(lane.pool, block, (uint64_t)n);
        bad += lane_io(&lane, LANE_WRITE, 1, (uint64_t)n, 1, lane.info.pool_dma) != 0;
        bad += lane_io(&lane, LANE_READ, 1, (uint64_t)n, 1, table[n]) != 0;
        bad += memcmp(memory + (size_t)n * PAGE, lane.pool, block) != 0;
    }
    CHECK("the drive reads into it and writes from it", !bad);
    CHECK("attached twice is attached once",
          !ioctl(lane.fd, VQL_IOC_QPAIR_ATTACH, &attach) && attach.slot == detach.slot);
    CHECK("the table is read only", map_error(lane.fd, VQL_QPAIR_MAP_DMA(attach.slot), 2 * PAGE,
                                              PROT_READ | PROT_WRITE, MAP_SHARED) != 0 &&
                                        mprotect((void*)table, PAGE, PROT_READ | PROT_WRITE));
    CHECK("another queue pair has slots of its own",
          !ioctl(other.fd, VQL_IOC_QPAIR_ATTACH, &attach));
    attach.mspace_fd = mspace;
    attach.reserved = 1;
    CHECK("reserved fields are refused",
          error_of(ioctl(other.fd, VQL_IOC_QPAIR_ATTACH, &attach)) == EINVAL);
    attach.reserved = 0;
    attach.mspace_fd = lane.fd;
    CHECK("what is no memory is not attached",
          ioctl(lane.fd, VQL_IOC_QPAIR_ATTACH, &attach) && errno == EINVAL);
    attach.mspace_fd = 9999;
    CHECK("nor what is no file", ioctl(lane.fd, VQL_IOC_QPAIR_ATTACH, &attach) && errno == EBADF);
    close(mspace);
    CHECK("memory stays while it is attached",
          !lane_io(&lane, LANE_READ, 1, 37, 1, table[1]) &&
              !memcmp(memory + PAGE, memory + 37 * PAGE, block));
    CHECK("memory is detached, once",
          !ioctl(lane.fd, VQL_IOC_QPAIR_DETACH, &detach) &&
              error_of(ioctl(lane.fd, VQL_IOC_QPAIR_DETACH, &detach)) == ENOENT);
    CHECK("its table ends with it", map_error(lane.fd, VQL_QPAIR_MAP_DMA(detach.slot), 2 * PAGE,
                                              PROT_READ, MAP_SHARED) == ENOENT);
    munmap((void*)table, 2 * PAGE);
    end_lane(&lane);
    end_lane(&other); // and its attachment
    munmap(memory, PAGES * PAGE);
    close(control);
}

// ---- ends ----

static void test_close(void) {
    struct lane lane, kept;
    bool all = true;
    int n, status;
    pid_t pid;

    for (n = 0; n < 30 && all; n++) {
        lane = new_lane();
        for (int k = 0; k < DEPTH - 1; k++)
            lane_submit(&lane, LANE_READ, 1, (uint64_t)k, 1, lane.info.pool_dma);
        if (n % 2)
            end_lane(&lane);
        else
            close(lane.fd), lane_unmap(&lane);
        all = get_info().free_qpairs == get_info().max_qpairs;
    }
    CHECK("closing with commands under way ends the queue pair", all);
    for (n = 0; n < 10 && all; n++) {
        pid = fork();
        if (!pid) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            ctrl = open(node, O_RDWR);
            lane = new_lane();
            for (uint64_t k = 0;; k++)
                works(&lane, 100 + k % 100, k);
        }
        sleep_ms(20 + n * 5);
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        all = get_info().free_qpairs == get_info().max_qpairs && new_lane_works();
    }
    CHECK("so does SIGKILL", all);
    kept = new_lane();
    CHECK("a file closed twice is an error, no more",
          !close(dup(kept.fd)) && close(9999) && works(&kept, 1, 1));
    close(kept.fd);
    CHECK("a mapping keeps the queue pair",
          works(&kept, 1, 2) && kept.status->state == VQL_QPAIR_LIVE);
    lane_unmap(&kept);
    CHECK("its end ends it", get_info().free_qpairs == get_info().max_qpairs);
    n = open(node, O_RDWR);
    lane_create(&lane, n, DEPTH, POOL);
    close(n);
    CHECK("a queue pair outlives the file that it came from",
          lane_map_all(&lane) && works(&lane, 4, 4));
    end_lane(&lane);
}

static void test_fork(void) {
    struct lane lane = new_lane();
    int status;
    pid_t pid;

    NEED(works(&lane, 1, 1));
    pid = fork();
    if (!pid) {
        bool is_gone = touch(lane.sq, false) == SIGSEGV && touch(lane.pool, false) == SIGSEGV &&
                       touch(lane.sq_doorbell, false) == SIGSEGV &&
                       touch(lane.status, false) == SIGSEGV;

        sleep_ms(300); // longer than the parent has it
        _exit(is_gone && lane_map_all(&lane) && works(&lane, 2, 2) ? 0 : 1);
    }
    end_lane(&lane);
    CHECK("a child keeps the file open", get_info().free_qpairs + 1 == get_info().max_qpairs);
    waitpid(pid, &status, 0);
    CHECK("but has not the mappings, and may make its own", status == 0);
    CHECK("its exit ends the queue pair", get_info().free_qpairs == get_info().max_qpairs);
}

static void test_reset(void) {
    struct lane lane = new_lane(), idle = new_lane();
    struct vql_ctrl_info info = get_info();

    NEED(works(&lane, 1, 1));
    for (int k = 0; k < DEPTH - 1; k++)
        lane_submit(&lane, LANE_READ, 1, (uint64_t)k, 1, lane.info.pool_dma);
    CHECK("a controller is reset", !ioctl(ctrl, VQL_IOC_CTRL_RESET));
    CHECK("that is news", events_of(ctrl, POLLPRI, 0) == POLLPRI);
    check_ended(&lane, VQL_QPAIR_LOST);
    check_ended(&idle, VQL_QPAIR_LOST);
    CHECK("it is live again, all free",
          get_info().state == VQL_CTRL_LIVE && get_info().free_qpairs == info.max_qpairs &&
              !memcmp(get_info().serial, info.serial, VQL_SERIAL_BYTES));
    CHECK("new queue pairs work", new_lane_works());
    end_lane(&lane);
    end_lane(&idle);
    CHECK("the old ones end without harm",
          new_lane_works() && get_info().free_qpairs == info.max_qpairs);
}

int main(int argc, char** argv) {
    static const struct {
        const char* name;
        void (*run)(void);
    } tests[] = {
        {"info", test_info},     {"namespace", test_namespace}, {"admin", test_admin_read},
        {"io", test_io},         {"interrupt", test_interrupt}, {"mmap", test_mmap},
        {"create", test_create}, {"shadow", test_shadow},       {"abort", test_abort},
        {"mspace", test_mspace}, {"close", test_close},         {"fork", test_fork},
        {"reset", test_reset},
    };

    open_ctrl(argc, argv);
    for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
        bool is_wanted = argc == 2;

        for (int k = 2; k < argc; k++)
            is_wanted |= !strcmp(argv[k], tests[i].name);
        if (is_wanted)
            tests[i].run();
    }
    return failures != 0;
}
