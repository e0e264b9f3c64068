// SPDX-License-Identifier: GPL-2.0-only
// Everything at once on one disk of vqlane.ko: a VMM that maps, resets, suspends and reopens, and
// daemons that take the lease, use the memory, hang, and die; processes that are killed in the
// middle. What it asks of the module: nobody hangs, nothing breaks, and in the end the disk works.
//
//   disk_stress BDF SECONDS
#include "vdpa.h"

#include <sys/wait.h>

static volatile bool stop;
static unsigned seed;

static __thread unsigned state;
static unsigned dice(unsigned sides) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % sides;
}

// touch() is for one thread; here it does not matter what the fault was.
static __thread sigjmp_buf jump;
static __thread volatile sig_atomic_t jump_is_set;

static void on_bus(int signal) {
    if (!jump_is_set)
        _exit(128 + signal);
    siglongjmp(jump, 1);
}

static void use(uint8_t* p, uint64_t bytes) {
    if (!sigsetjmp(jump, 1)) {
        jump_is_set = 1;
        for (int i = 0; i < 20; i++) {
            volatile uint8_t* at = p + PAGE * dice((unsigned)(bytes / PAGE));
            *at = (uint8_t)(*at + 1);
        }
    }
    jump_is_set = 0;
}

// Has the lease for a while, and yields, or not.
static void serve(int disk, int memory) {
    struct vql_mregion r[64];
    struct vql_mspace_regions regions = {
        .size = sizeof(regions), .nregions = 64, .regions = (uint64_t)(uintptr_t)r};
    struct lane lane;
    bool has_lane = dice(3) == 0 && lane_create(&lane, ctrl, DEPTH, 0) >= 0;
    MUST(ioctl(memory, VQL_IOC_MSPACE_REGIONS, &regions));
    uint64_t bytes = regions.pages * PAGE, record_bytes = QUEUES * VQL_INFLIGHT_BYTES(RING);
    uint8_t* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    uint8_t* record = mmap(NULL, record_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
    struct vql_qpair_attach attach = {.size = sizeof(attach), .mspace_fd = memory};
    if (has_lane && !ioctl(lane.fd, VQL_IOC_QPAIR_ATTACH, &attach) && dice(2)) {
        struct vql_qpair_detach detach = {.size = sizeof(detach), .slot = attach.slot};
        ioctl(lane.fd, VQL_IOC_QPAIR_DETACH, &detach);
    }
    for (unsigned turns = dice(50); turns; turns--) {
        use(p, bytes);
        use(record, record_bytes);
        if (disk_state(disk).flags & (VQL_DISK_RECALL | VQL_DISK_REVOKED))
            break;
    }
    munmap(p, bytes);
    munmap(record, record_bytes);
    if (dice(8)) // else it is revoked, or ends with the claim
        yield_at(disk, (uint16_t)dice(65536));
    if (has_lane)
        close(lane.fd);
    close(memory);
}

static void* daemons(void* arg) {
    state = seed + (unsigned)(uintptr_t)arg;
    while (!stop) {
        int disk = disk_claim("stress");
        for (unsigned turns = dice(40); disk >= 0 && turns && !stop; turns--) {
            struct pollfd p = {.fd = disk, .events = POLLIN};
            int memory = acquire(disk);
            if (memory >= 0)
                serve(disk, memory);
            else
                poll(&p, 1, 2);
            if (dice(20) == 0)
                ioctl(disk, VQL_IOC_DISK_BROKEN);
        }
        if (disk >= 0)
            close(disk);
    }
    return NULL;
}

static void* bells(void* arg) {
    state = seed + (unsigned)(uintptr_t)arg;
    int queue[QUEUES] = {-1, -1};
    uint64_t one = 1;
    while (!stop) {
        unsigned q = dice(QUEUES);
        if (queue[q] >= 0 && dice(100)) {
            if (write(queue[q], &one, 8) != 8)
                err(1, "ringing");
            readable(queue[q]);
            continue;
        }
        if (queue[q] >= 0)
            close(queue[q]);
        queue[q] = -1;
        int disk = disk_claim("stress");
        if (disk < 0)
            continue;
        queue[q] = ioctl(disk, VQL_IOC_DISK_QUEUE_FD, q);
        close(disk);
    }
    return NULL;
}

static struct vmm vmm;

static void* kicks(void* arg) {
    (void)arg;
    uint64_t one = 1;
    while (!stop) {
        for (int q = 0; q < QUEUES; q++)
            if (write(vmm.kick[q], &one, 8) != 8)
                take_event(vmm.kick[q]);
        sched_yield();
    }
    return NULL;
}

// Any of it may be refused, as things stand; nothing may hang.
static void vmm_turn(void) {
    struct vhost_vring_file call = {.index = dice(QUEUES)};
    uint64_t plug_at = 0xc0000000ull + MIB * dice(4);
    switch (dice(10)) {
    case 0:
        vmm_negotiate(&vmm);
        MUST(set_status(&vmm, S_RUNNING));
        break;
    case 1: set_status(&vmm, 0); break;
    case 2: ioctl(vmm.fd, VHOST_VDPA_SUSPEND); break;
    case 3: ioctl(vmm.fd, VHOST_VDPA_RESUME); break;
    case 4: enable_queue(&vmm, dice(QUEUES), dice(2)); break;
    case 5: vring_base(&vmm, dice(QUEUES)); break;
    case 6:
        call.fd = dice(2) ? vmm.call[dice(QUEUES)] : dice(2) ? vmm.kick[dice(QUEUES)] : -1;
        ioctl(vmm.fd, VHOST_SET_VRING_CALL, &call);
        break;
    case 7:
        iotlb(&vmm, VHOST_IOTLB_UPDATE, plug_at, MIB, vmm.private + MIB * dice(3), VHOST_ACCESS_RW);
        break;
    case 8: iotlb(&vmm, VHOST_IOTLB_INVALIDATE, plug_at, MIB, NULL, 0); break;
    case 9: take_event(vmm.config); break;
    }
}

static void* vmms(void* arg) {
    state = seed + (unsigned)(uintptr_t)arg;
    while (!stop) {
        for (unsigned turns = dice(200); turns && !stop; turns--)
            vmm_turn();
        int fd = vmm.fd;
        close(fd);
        vmm.fd = open_node("stress");
        if (vmm.fd < 0)
            err(1, "opening the device again");
        uint64_t backend = 0;
        MUST(ioctl(vmm.fd, VHOST_SET_OWNER));
        MUST(ioctl(vmm.fd, VHOST_GET_BACKEND_FEATURES, &backend));
        MUST(ioctl(vmm.fd, VHOST_SET_BACKEND_FEATURES, &backend));
        vmm_start(&vmm);
    }
    return NULL;
}

// One process that does it all, until it is told to stop or is killed.
static void run(double seconds) {
    void* (*const roles[])(void*) = {daemons, daemons, bells, kicks, vmms};
    pthread_t threads[5];
    struct sigaction action = {.sa_handler = on_bus, .sa_flags = SA_NODEFER};
    MUST(sigaction(SIGBUS, &action, NULL));
    vmm_open(&vmm, "stress");
    vmm_start(&vmm);
    for (uintptr_t i = 0; i < 5; i++)
        MUST(-pthread_create(&threads[i], NULL, roles[i], (void*)i));
    usleep((useconds_t)(seconds * 1e6));
    stop = true;
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    vmm_close(&vmm);
}

int main(int argc, char** argv) {
    open_ctrl(argc, argv);
    NEED(argc == 3);
    double until = now_s() + atof(argv[2]);
    part = "stress";
    seed = (unsigned)time(NULL);
    printf("seed %u\n", seed);
    control = (int)MUST(open("/dev/vqlane/control", O_RDWR | O_CLOEXEC));
    unsigned drain_ms = set_parameter("drain_ms", 5);
    close((int)MUST(disk_create("stress")));
    while (now_s() < until) {
        bool killed = ++seed % 3;
        pid_t child = fork();
        if (child == 0) {
            run(killed ? 1000 : 2);
            _exit(0);
        }
        int status;
        if (killed) {
            usleep(500000 + seed % 7 * 100000);
            MUST(kill(child, SIGKILL));
        }
        if (!SOON(60, waitpid(child, &status, WNOHANG) == child)) {
            fail("a process hangs");
            return 1;
        }
        if (killed ? !WIFSIGNALED(status) : status != 0)
            fail("a process ends with status %#x", (unsigned)status);
    }
    set_parameter("drain_ms", drain_ms);
    // And now properly.
    int disk = disk_claim("stress");
    EXPECT(disk >= 0);
    vmm_open(&vmm, "stress");
    vmm_start(&vmm);
    struct memory m;
    memory_open(&m, (int)MUST(acquire(disk)));
    EXPECT(!memcmp(at(&m, PRIVATE_AT), vmm.private, PRIVATE_BYTES));
    memory_close(&m);
    EXPECT(yield_at(disk, 0) == 0);
    vmm_close(&vmm);
    EXPECT(ioctl(disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    if (failures == 0)
        printf("ok stress\n");
    return failures != 0;
}
