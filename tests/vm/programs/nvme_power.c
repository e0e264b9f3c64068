// SPDX-License-Identifier: GPL-2.0-only
// nvme_power BDF: a queue pair whose host goes to sleep and wakes up ("do sleep", host-common.sh).
// Overwrites the drive.
#include "lane.h"

static void wait_for_did(const char* word) {
    char path[256];

    snprintf(path, sizeof(path), "%s/did.%s", getenv("VQL_OUT"), word);
    printf("do %s\n", word);
    fflush(stdout);
    while (access(path, F_OK))
        usleep(10000);
}

int main(int argc, char** argv) {
    struct vql_ctrl_info info;
    struct lane lane, second;

    open_ctrl(argc, argv);
    lane = new_lane();
    memset(lane.pool, 0x5a, PAGE);
    CHECK("a block is written before the host sleeps",
          !lane_io(&lane, LANE_WRITE, 1, 8, PAGE / block, lane.info.pool_dma));
    info = get_info(); // no more news
    wait_for_did("sleep");
    info = get_info();
    CHECK("the controller is live again",
          info.state == VQL_CTRL_LIVE && !(info.flags & VQL_CTRL_SUSPENDED));
    CHECK("the queue pair is lost, as after a reset", lane.status->state == VQL_QPAIR_LOST);
    CHECK("and its holder told", events_of(lane.fd, POLLIN, 0) & POLLHUP);
    second = new_lane();
    CHECK("another is made", second.status->state == VQL_QPAIR_LIVE);
    memset(second.pool, 0, PAGE);
    CHECK("that reads what was written",
          !lane_io(&second, LANE_READ, 1, 8, PAGE / block, second.info.pool_dma) &&
              ((uint8_t*)second.pool)[0] == 0x5a && ((uint8_t*)second.pool)[PAGE - 1] == 0x5a);
    return failures != 0;
}
