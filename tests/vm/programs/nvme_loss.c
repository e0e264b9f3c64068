// SPDX-License-Identifier: GPL-2.0-only
// nvme_loss BDF WHAT: vqlane.ko when a controller is taken away from under open files:
//   stress  everything at once for some seconds: I/O, SIGKILL, resets, new and old queue pairs
//   unbind  the driver is unbound while files are open and mapped
//   hung    the controller can no longer answer (bus mastering off) and is given up
//   heals   the same, but it answers again while it is being reset
//   muted   the controller works, but answers no admin command
//   flr     a function level reset, by sysfs
//   pulled  waits until somebody pulls the drive
//   event   waits until the controller warns of its health
//   frozen  waits until its PCI channel is frozen, by an error above it, and recovered
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include <vqlane/nvme.h>

#include "vdpa.h"

static void write_file(const char* path, const char* text) {
    int fd = open(path, O_WRONLY);

    NEED(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void write_device(const char* name, const char* text) {
    char path[128];

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
    write_file(path, text);
}

// Without it a function can neither read commands nor write answers, nor interrupt.
static void set_bus_master(bool is_on) {
    char path[128];
    uint16_t command;
    int fd;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", bdf);
    fd = open(path, O_RDWR);
    NEED(fd >= 0 && pread(fd, &command, 2, 4) == 2);
    command = (uint16_t)(is_on ? command | 4 : command & ~4);
    NEED(pwrite(fd, &command, 2, 4) == 2);
    close(fd);
}

static void rebind(void) {
    write_file("/sys/bus/pci/drivers_probe", bdf);
    close(ctrl);
    ctrl = open(node, O_RDWR);
    CHECK("bound again it works", ctrl >= 0 && new_lane_works());
}

// The controller is gone: what remains are files.
static void check_gone(struct lane* lane) {
    struct vql_qpair_create req = {.size = sizeof(req), .depth = 8};

    check_ended(lane, VQL_QPAIR_GONE);
    CHECK("the controller is dead, and hangs up",
          get_info().state == VQL_CTRL_DEAD && events_of(ctrl, POLLPRI, 0) & POLLHUP);
    CHECK("nothing more is to be had of it",
          error_of(ioctl(ctrl, VQL_IOC_QPAIR_CREATE, &req)) == ENODEV &&
              error_of(ioctl(ctrl, VQL_IOC_CTRL_RESET)) == ENODEV);
}

static void unbind(void) {
    struct lane lane = new_lane(), idle = new_lane();

    NEED(works(&lane, 1, 1) && !ioctl(idle.fd, VQL_IOC_QPAIR_ARM));
    for (uint64_t k = 0; k < DEPTH - 1; k++)
        lane_submit(&lane, LANE_READ, 1, k, 1, lane.info.pool_dma);
    write_device("driver/unbind", bdf);
    check_gone(&lane);
    check_ended(&idle, VQL_QPAIR_GONE);
    CHECK("its node is gone", access(node, F_OK));
    end_lane(&lane);
    rebind();
    end_lane(&idle);
    CHECK("an old file that is closed then does no harm", new_lane_works());
}

// Whoever had the controller reset does not wait for it to be LIVE, or DEAD.
static enum vql_ctrl_state settled(void) {
    double begin = now_s();

    while (get_info().state == VQL_CTRL_RESETTING && now_s() - begin < 60)
        sleep_ms(10);
    return get_info().state;
}

static void* heal(void* after_ms) {
    sleep_ms((long)(intptr_t)after_ms);
    set_bus_master(true);
    return NULL;
}

static void hang(bool it_heals) {
    struct lane lane = new_lane(), other = new_lane();
    double begin = now_s();
    pthread_t healer;

    NEED(works(&lane, 1, 1));
    write_file("/sys/module/vqlane/parameters/admin_timeout_s", "2");
    set_bus_master(false);
    for (uint64_t k = 0; k < DEPTH - 1; k++)
        lane_submit(&lane, LANE_READ, 1, k, 1, lane.info.pool_dma);
    // Abort is not answered: reset; Identify is not either, unless it heals before.
    if (it_heals)
        pthread_create(&healer, NULL, heal, (void*)(intptr_t)300);
    CHECK("an abort that is not answered is an error",
          ioctl(lane.fd, VQL_IOC_QPAIR_ABORT, 1) != 0 || it_heals);
    CHECK("that comes in time", now_s() - begin < 10);
    if (it_heals) {
        pthread_join(healer, NULL);
        CHECK("a controller that answers again is live",
              settled() == VQL_CTRL_LIVE && new_lane_works());
    } else {
        settled();
        check_gone(&lane);
        check_ended(&other, VQL_QPAIR_GONE);
        write_device("driver/unbind", bdf);
    }
    write_file("/sys/module/vqlane/parameters/admin_timeout_s", "60");
    end_lane(&lane);
    end_lane(&other);
    if (!it_heals)
        rebind();
}

static void* ask_once(void* arg) {
    struct vql_ns_info ns = {.size = sizeof(ns), .nsid = 1};

    ioctl(ctrl, VQL_IOC_NS_INFO, &ns);
    return arg;
}

static int map_more(struct vmm* v) {
    static uint8_t page[PAGE] __attribute__((aligned(PAGE)));

    return iotlb(v, VHOST_IOTLB_UPDATE, 0xc0000000, PAGE, page, VHOST_ACCESS_RW);
}

// A VMM changes its memory map, and the daemon does not let go of the memory in time: so its queue
// pair ends before the call returns. What others have asked the controller for may take
// admin_timeout_s, 60 s, and so may each command of its start: the VMM does not wait for these.
static void mute(void) {
    struct lane lane = new_lane(), other = new_lane();
    struct vql_qpair_attach attach = {.size = sizeof(attach)};
    pthread_t asker;
    struct call call;
    struct scene s;
    unsigned drain_ms;

    control = open("/dev/vqlane/control", O_RDWR | O_CLOEXEC);
    drain_ms = set_parameter("drain_ms", 200);
    scene_open(&s);
    attach.mspace_fd = s.memory.fd;
    NEED(works(&lane, 1, 1) && !ioctl(lane.fd, VQL_IOC_QPAIR_ATTACH, &attach));
    NEED(!system("insmod \"${VQL_KMOD%/vqlane.ko}/faults/faults.ko\" mute=1"));
    pthread_create(&asker, NULL, ask_once, NULL);
    sleep_ms(1000);
    call_start(&call, &s.vmm, map_more);
    call_end(&call);
    CHECK("a VMM has others' command end sooner", call.seconds < 40);
    CHECK("its daemon's queue pair is lost", lane.status->state == VQL_QPAIR_LOST);
    CHECK("then the controller starts", get_info().state == VQL_CTRL_RESETTING);
    pthread_join(asker, NULL);
    NEED(!system("rmmod faults"));
    CHECK("which nobody hurries, for it may be slow", settled() == VQL_CTRL_LIVE);
    check_ended(&other, VQL_QPAIR_LOST);
    end_lane(&lane);
    end_lane(&other);
    scene_close(&s);
    set_parameter("drain_ms", drain_ms);
    CHECK("it works", new_lane_works());
}

static void reset_function(void) {
    struct lane lane = new_lane();

    NEED(works(&lane, 1, 1));
    write_device("reset", "1");
    check_ended(&lane, VQL_QPAIR_LOST);
    end_lane(&lane);
    CHECK("after a function level reset it works",
          get_info().state == VQL_CTRL_LIVE && new_lane_works());
}

// I/O as long as it goes, without a look at anything that may vanish but in touch().
static void pulled(void) {
    struct lane lane = new_lane(), idle = new_lane();
    double begin = now_s();
    uint64_t n = 0;

    NEED(works(&lane, 1, 1));
    printf("# waiting\n");
    fflush(stdout);
    while (lane.status->state == VQL_QPAIR_LIVE && now_s() - begin < 60) {
        if (sigsetjmp(fault_jump, 1))
            break;
        fault_expected = 1;
        lane_submit(&lane, LANE_READ, 1, n++ % 100, 1, lane.info.pool_dma);
        lane_wait(&lane, 0.5);
        fault_expected = 0;
    }
    fault_expected = 0;
    CHECK("there was I/O until then", n > 10);
    check_gone(&lane);
    end_lane(&lane);
    check_ended(&idle, VQL_QPAIR_GONE);
    end_lane(&idle);
}

static void event(void) {
    struct vql_ctrl_info info = get_info();
    uint32_t before = info.events;

    printf("# waiting\n");
    fflush(stdout);
    CHECK("an event is told", events_of(ctrl, POLLPRI, 20000) == POLLPRI);
    info = get_info();
    CHECK("which one, is known", info.events > before && info.critical_warning == 4);
    CHECK("once", !events_of(ctrl, POLLPRI, 500));
}

static atomic_bool asking;

static void* ask(void* arg) {
    struct vql_ns_info ns = {.size = sizeof(ns), .nsid = 1};

    while (asking)
        ioctl(ctrl, VQL_IOC_NS_INFO, &ns);
    return arg;
}

// Error recovery: the port's secondary bus is reset, and the function's configuration with it;
// while the controller is being asked something.
static void frozen(void) {
    struct lane lane = new_lane(), idle = new_lane();
    double begin = now_s();
    pthread_t asker;

    NEED(works(&lane, 1, 1));
    asking = true;
    NEED(!pthread_create(&asker, NULL, ask, NULL));
    printf("# waiting\n");
    fflush(stdout);
    while (lane.status->state == VQL_QPAIR_LIVE && now_s() - begin < 60)
        sleep_ms(1);
    check_ended(&lane, VQL_QPAIR_LOST);
    check_ended(&idle, VQL_QPAIR_LOST);
    while (get_info().state == VQL_CTRL_RESETTING && now_s() - begin < 60)
        sleep_ms(1);
    asking = false;
    pthread_join(asker, NULL);
    end_lane(&lane);
    CHECK("when the channel has recovered it works",
          get_info().state == VQL_CTRL_LIVE && new_lane_works());
    end_lane(&idle);
}

// ---- stress ----

static double stress_end;

// A process of its own, for it will be killed, or find its mappings gone.
static void stress_io(unsigned int seed) {
    srand(seed);
    ctrl = open(node, O_RDWR);
    while (now_s() < stress_end) {
        struct lane lane;
        int n = rand() % 300;

        if (lane_create(&lane, ctrl, 2u + (unsigned int)rand() % 30, 2) < 0 ||
            !lane_map_all(&lane)) {
            if (errno != EAGAIN && errno != ENOSPC && errno != ENODEV)
                _exit(1);
            sleep_ms(1);
            close(lane.fd);
            continue;
        }
        if (!sigsetjmp(fault_jump, 1)) {
            fault_expected = 1;
            while (n-- && lane.status->state == VQL_QPAIR_LIVE) {
                lane_submit(&lane, LANE_READ, 1, (uint64_t)rand() % blocks, 1, lane.info.pool_dma);
                int wrong = rand() % 8 ? lane_wait(&lane, 0.2) : 0;
                if (wrong > 0 && (wrong & 0x7ff) != VQL_NVME_SC_SQ_DELETED) // by a reset
                    _exit(2);
                if (rand() % 50 == 0)
                    break; // with commands under way
            }
        }
        fault_expected = 0;
        lane_unmap(&lane);
        close(lane.fd);
    }
    _exit(0);
}

static void stress(void) {
    enum { PROCESSES = 3 };
    pid_t pids[PROCESSES] = {0};
    int resets = 0, kills = 0, bad = 0, status;

    stress_end = now_s() + 15;
    for (int n = 0; now_s() < stress_end; n = (n + 1) % PROCESSES) {
        if (pids[n]) {
            kill(pids[n], SIGKILL);
            waitpid(pids[n], &status, 0);
            bad += WIFEXITED(status) && WEXITSTATUS(status);
            kills++;
        }
        pids[n] = fork();
        if (!pids[n])
            stress_io((unsigned int)kills);
        sleep_ms(rand() % 200);
        if (rand() % 2)
            resets += !ioctl(ctrl, VQL_IOC_CTRL_RESET);
    }
    for (int n = 0; n < PROCESSES; n++)
        if (pids[n] > 0 && waitpid(pids[n], &status, 0) > 0)
            bad += WIFEXITED(status) && WEXITSTATUS(status);
    printf("# %d resets, %d processes killed\n", resets, kills);
    CHECK("nobody saw what must not be", !bad && resets > 2 && kills > 5);
    CHECK("at the end all is as before",
          get_info().free_qpairs == get_info().max_qpairs && new_lane_works());
}

int main(int argc, char** argv) {
    const char* what = argc == 3 ? argv[2] : "";

    open_ctrl(argc, argv);
    if (!strcmp(what, "stress"))
        stress();
    else if (!strcmp(what, "unbind"))
        unbind();
    else if (!strcmp(what, "hung"))
        hang(false);
    else if (!strcmp(what, "heals"))
        hang(true);
    else if (!strcmp(what, "muted"))
        mute();
    else if (!strcmp(what, "flr"))
        reset_function();
    else if (!strcmp(what, "pulled"))
        pulled();
    else if (!strcmp(what, "event"))
        event();
    else if (!strcmp(what, "frozen"))
        frozen();
    else
        NEED(!"a word that says what");
    return failures != 0;
}
