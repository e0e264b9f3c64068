// SPDX-License-Identifier: GPL-2.0-only
// nvme_release BDF: a drive is told to write to memory of a queue pair that has gone. Prints
// "reached N": so many pages of this program's, which it got after that memory was free, have the
// drive's bytes. Overwrites the drive.
#include <sched.h>

#include "lane.h"

enum {
    ROUNDS = 200,
    ASKED = 8,   // pages of the queue pair
    OTHERS = 48, // pages got after its end: the kernel gives out those first that were freed last,
                 // on a CPU
    STEP = 2,
    FROM_DRIVE = 0x5a,
};

// Pages of ours in which the drive has written.
static unsigned round_of(struct lane* lane) {
    struct lane gone;
    unsigned reached = 0;
    uint64_t dma;
    uint8_t* others;

    NEED(lane_create(&gone, ctrl, DEPTH, ASKED) >= 0);
    NEED(lane_map_all(&gone));
    // The translation is used, so that it is in the IOMMU's cache, as that of memory in use is.
    dma = gone.info.pool_dma;
    for (unsigned page = 0; page < ASKED; page += STEP)
        NEED(lane_io(lane, LANE_READ, 1, 8, PAGE / block, dma + page * PAGE) == 0);
    lane_unmap(&gone);
    NEED(!close(gone.fd));
    // Zeroed. All that follows has to be over before the IOMMU's queue is flushed, after 10 ms.
    others = mmap(NULL, OTHERS * PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    NEED(others != MAP_FAILED);
    for (unsigned page = 0; page < ASKED; page += STEP) // whatever the drive answers
        lane_io(lane, LANE_READ, 1, 8, PAGE / block, dma + page * PAGE);
    for (unsigned page = 0; page < OTHERS; page++)
        reached += others[(size_t)page * PAGE] == FROM_DRIVE;
    munmap(others, OTHERS * PAGE);
    return reached;
}

int main(int argc, char** argv) {
    struct lane lane;
    unsigned reached = 0;
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(1, &one);
    NEED(!sched_setaffinity(0, sizeof(one), &one));
    open_ctrl(argc, argv);
    lane = new_lane();
    memset(lane.pool, FROM_DRIVE, PAGE);
    NEED(lane_io(&lane, LANE_WRITE, 1, 8, PAGE / block, lane.info.pool_dma) == 0);
    for (int round = 0; round < ROUNDS; round++)
        reached += round_of(&lane);
    printf("reached %u\n", reached);
    return 0;
}
