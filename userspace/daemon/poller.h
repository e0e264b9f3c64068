// SPDX-License-Identifier: GPL-2.0-only
// The poll lane: one thread on one CPU that serves virtqueues. One round is:
//
//   mailbox → completions → for each busy queue: fetch, validate, remap, submit
//           → answer what is done, publish, interrupt → hand new work to the kernel
//
// A queue without work for a while asks its driver for kicks and leaves the round, so that idle
// queues cost nothing; when all have left, the thread sleeps in one io_uring wait for kicks,
// completions and its mailbox.
//
// Nothing in a round allocates, locks or logs. The mailbox is the control path's way in; the event
// loop's is the way out, taken only when a queue breaks or has drained.
#pragma once

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "daemon/target_table.h"
#include "engine/null.h"
#include "engine/nvme.h"
#include "engine/uring.h"
#include "frontend/virtqueue.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <liburing.h>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#include <vqlane/blk.h>
#include <vqlane/remap.h>
#include <vqlane/stats.h>
#include <vqlane/trace.h>

namespace vql {

// A controller as one poller sees it: an engine on a queue pair of its own. Made and destroyed by
// the controller's owner; from poller::add_nvme() until remove_nvme() is done, the poller's alone.
struct nvme_lane {
    nvme_engine engine;
    // The queue pair's descriptor, and the ioctl that lets its next completion wake a sleeper.
    int fd = -1;
    std::function<void()> arm;
    bool has_interrupt = false;
    // Posted to the control thread: the queue pair is lost; commands are overdue.
    std::function<void()> lost;
    std::function<void(std::vector<uint16_t> cids)> overdue;
    std::atomic<bool> stuck{false}; // some were overdue when last looked at; anyone may read

    // The poller's own.
    uint32_t index = 0; // target::controller
    bool told_lost = false;
    bool dead = false;       // the controller is gone for good: every piece fails
    bool watched = false;    // a multishot poll on fd is out
    bool unwatching = false; // … and its removal was asked for
    bool rewatch = false;    // fd is another one now: watch it when the old one is let go
    std::function<void()> removed;
};

// A virtqueue with all its poller needs to serve it. Made and destroyed by the disk; in between,
// from poller::add_queue() until remove_queue() is done, the poller's alone.
struct served_queue {
    virtqueue* vq = nullptr;
    uint32_t slot = 0;            // its disk's
    vql_extent_table table{};     // where requests go; without chunks where vq->policy decides that
    vql_extent_table extents{};   // the disk's
    std::vector<target*> targets; // what a flush reaches
    // The guest's memory as each controller's DMA sees it, where the disk has targets there. The
    // views are the controllers' own, and change on this poller's thread only.
    std::array<const dma_view*, VQL_MAX_CONTROLLERS> dma{};
    vql_disk_stats* stats = nullptr;
    std::function<void()> broken;  // posted to the control thread when the driver breaks the ring
    std::function<void()> through; // … when vq->limit is used up

    // busy: in the round. idle: waits for a kick, or is broken. draining: leaves when all is
    // answered.
    enum class state : uint8_t { detached, busy, idle, draining };
    state now = state::detached;
    bool starved = false;    // has its part of the requests, and the driver wants more
    bool to_publish = false; // used entries were pushed in this round
    bool kick_armed = false; // a multishot poll on the kick eventfd is out
    bool disarming = false;  // … and its removal was asked for
    uint32_t in_flight = 0;
    bool told_through = false;
    size_t resubmitted = 0; // of vq->resubmit
    bool all_resubmitted() const { return resubmitted == vq->resubmit.size() || vq->ring_error; }
    uint64_t last_work_ns = 0;
    std::function<void()> drained; // posted when draining ends
};

// A request under way.
struct alignas(64) request {
    vql_io io;
    vql_blk_answer answer;
    served_queue* queue;
    uint64_t start_ns;
    // What is not submitted yet.
    uint64_t sector;
    uint64_t left; // bytes; FLUSH: targets
    const vql_seg* seg;
    uint32_t nsegs;
    uint16_t head;
    uint16_t parts; // pieces in flight
    uint64_t skip;  // bytes of *seg already submitted
    request* next;  // free list, or the list of those waiting for room
    bool waiting;   // in the latter
    vql_chain chain;
    vql_trace_io trace; // touched only while somebody traces
};

struct poller_stats { // written by the poller, read by anyone
    std::atomic<uint64_t> requests{0};
    std::atomic<uint64_t> wakeups{0}; // kicks that ended an idle queue's rest
    std::atomic<uint64_t> sleeps{0};
    std::atomic<uint64_t> busy_ns{0}; // time in rounds that had work
};

class poller {
  public:
    struct options {
        int cpu;
        uint32_t index;
        uint64_t spin_ns;
        bool spin_always;
    };

    // Start the thread. Fails when the CPU is not ours or io_uring is not to be had.
    static result<std::unique_ptr<poller>> start(const options& o, event_loop& loop,
                                                 const target_table& targets);
    // The same on the calling thread, which then turns the rounds itself: for benches.
    static result<std::unique_ptr<poller>> open(const options& o, event_loop& loop,
                                                const target_table& targets);
    // One round. Returns whether there was any work.
    bool round();
    // Ends the thread; all queues were removed before.
    ~poller();

    int cpu() const { return options_.cpu; }
    uint32_t index() const { return options_.index; }
    const poller_stats& stats() const { return stats_; }

    // Run @fn on the poller's thread, between two rounds. From any thread; in order.
    void post(std::function<void()> fn);

    // The rest: on the poller's thread, by post().
    void add_queue(served_queue& q);
    // As queue_host::set_call().
    void set_call(virtqueue& vq, unique_fd call);
    // Take no more from @q, answer what is in flight, then post @drained to the control thread.
    void remove_queue(served_queue& q, std::function<void()> drained);
    void add_target(const target& t) { uring_.add_target(t); }
    void remove_target(const target& t) { uring_.remove_target(t); }
    void add_memory(uint8_t* base, uint64_t bytes);
    void remove_memory(uint8_t* base);
    // Controller @index is served through @lane from now on.
    void add_nvme(nvme_lane& lane, uint32_t index);
    // No target uses the lane any more; @removed is posted to the control thread when the poller
    // has let go of it.
    void remove_nvme(nvme_lane& lane, std::function<void()> removed);
    // After the lane was lost: go on with @queue on the new descriptor @fd, submitting again what
    // was not finished; or without any, failing everything from now on.
    void replace_nvme(nvme_lane& lane, const nvme_queue& queue, int fd, bool has_interrupt);
    void fail_nvme(nvme_lane& lane);

  private:
    // Requests under way on one poller, over all its queues. Only what is used is ever touched.
    static constexpr size_t pool_size = 4096;
    // Pieces of one request in flight, so that one large request leaves room for others.
    static constexpr uint16_t max_parts = 16;

    static uint64_t clock_ns();
    // Counters have a single writer, this thread, and readers elsewhere.
    static void add(std::atomic<uint64_t>& counter, uint64_t n) {
        counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    }
    static void add(__u64& counter, uint64_t n) { vql_write_once(&counter, counter + n); }

    poller(const options& o, event_loop& loop, const target_table& targets);
    result<void> set_up();
    void run();
    bool run_mailbox();
    void leave_round();
    bool reap();
    bool reap_nvme();
    void finished(request& r, vql_status status);
    void check_overdue(uint64_t now);
    void watch(nvme_lane& lane);
    void unwatch(nvme_lane& lane);
    void check_unwatched(nvme_lane& lane);
    bool retry_waiting();
    bool poll_queue(served_queue& q, uint64_t now);
    request* allocate();
    void release(request& r);
    void done(request& r) { done_[done_count_++] = &r; }
    bool take(served_queue& q, uint16_t head, uint64_t now);
    uint32_t take_left_over(served_queue& q, uint32_t most, uint64_t now);
    int parse(virtqueue& vq, uint16_t head, request& r);
    int parse_large(virtqueue& vq, uint16_t head, request& r);
    vql_seg* large_segments(const request& r) {
        const auto index = size_t(&r - reinterpret_cast<const request*>(requests_.data()));
        return reinterpret_cast<vql_seg*>(large_.data()) + index * VQL_MOST_SEGS;
    }
    target* target_of(const vql_remap& to) const {
        return to.verdict == VQL_SERVE ? targets_[to.target].load(std::memory_order_acquire)
                                       : nullptr;
    }
    static vql_remap not_in_table(request& r);
    void break_ring(served_queue& q, int error);
    void submit(request& r);
    void submit_rest(request& r);
    void submit_flush(request& r);
    enum class taken : uint8_t { no_room, in_flight, done };
    taken submit_piece(request& r, target& t, uint64_t offset, uint64_t bytes);
    taken submit_to_nvme(request& r, target& t, uint64_t offset, uint64_t bytes);
    taken submit_to_uring(request& r, target& t, uint64_t offset, uint64_t bytes);
    void advance(request& r, uint64_t bytes);
    void wait_for_room(request& r, const target& t);
    bool has_room(uint32_t place) const;
    uint32_t left_of_share(const served_queue& q) const;
    void answer_done();
    struct answer_run;
    void answer(request& r);
    void log_writes(served_queue& q, request& r);
    void publish(served_queue& q);
    void interrupt(virtqueue& vq);
    bool arm(virtqueue& vq);
    void disarm(virtqueue& vq);
    void rest_idle(uint64_t now);
    void wake(served_queue& q);
    void wake_starved();
    void arm_kick(served_queue& q);
    void disarm_kick(served_queue& q);
    void check_drained(served_queue& q);
    void sleep();
    // poller_trace.cc
    static bool has_trace(const request& r);
    static void begin_trace(request& r);
    static void trace_fetch(request& r);
    static void trace_remap(request& r, const vql_remap& to);
    void trace_submit(request& r, const target& t) const;
    static void trace_part_done(request& r, vql_status status);
    static void trace_answer(request& r);
    void trace_complete();
    static void trace_lane(const served_queue& q, vql_lane_kind from, vql_lane_kind to,
                           const char* reason);
    static void trace_error(const served_queue& q, int code, const char* text);
    int16_t buffer_of(const void* base, uint64_t bytes) const;

    struct pinned { // a part of a memory region, registered with the ring
        uint8_t* base;
        uint64_t bytes;
        int16_t buffer;
        uint8_t* region;
    };

    const options options_;
    event_loop& loop_;
    const target_table& targets_;
    poller_stats stats_;
    io_uring ring_{};
    bool ring_open_ = false;
    uring_engine uring_;
    std::array<nvme_lane*, VQL_MAX_CONTROLLERS> nvme_{}; // by target::controller
    std::vector<nvme_lane*> lanes_;                      // the same, without gaps
    uint64_t overdue_checked_ns_ = 0;
    uint64_t last_round_ns_ = 0; // when it looked at the clock

    mapping requests_;
    // Segments of those that have too many for chain.seg: VQL_MOST_SEGS a request, so that nobody
    // waits for anybody's. 128 MiB of address space, of which only what was needed is memory.
    mapping large_;
    request* free_ = nullptr; // used before; those past fresh_ never were, and cost no memory
    size_t fresh_ = 0;
    size_t in_use_ = 0; // requests taken and not answered
    // Requests that found no room, first come first served at each place: one for each target of
    // the io_uring engine, then one for each NVMe controller.
    struct wait_list {
        request* head = nullptr;
        request* tail = nullptr;
    };
    std::vector<wait_list> waiting_;
    std::vector<uint32_t> crowded_;    // the places where somebody waits
    bool room_made_ = false;           // an engine finished something: those waiting may try again
    std::unique_ptr<request*[]> done_; // room for all there are
    size_t done_count_ = 0;
    bool tracing_ = false; // somebody looks at our probes; as of this round's beginning
    std::vector<served_queue*> busy_;
    std::vector<served_queue*> to_publish_;
    std::vector<served_queue*> starved_; // idle until some requests were answered
    size_t queues_ = 0;                  // added and not removed
    std::vector<pinned> memory_;
    // A busy queue is to leave: its ring broke, or it has no more to drain.
    bool left_round_ = false;
    size_t first_ = 0; // the busy queue whose turn it is to go first

    unique_fd wake_;
    std::mutex mutex_; // guards mailbox_
    std::vector<std::function<void()>> mailbox_;
    std::atomic<bool> mail_{false}; // mailbox_ may hold something
    bool stopping_ = false;
    std::thread thread_;
};

// A piece of @r is done.
inline void poller::finished(request& r, vql_status status) {
    if (VQL_UNLIKELY(tracing_))
        trace_part_done(r, status);
    r.io.status = std::max(r.io.status, uint8_t(status));
    r.parts--;
    room_made_ = true;
    if (r.io.status != VQL_STATUS_OK && !r.waiting)
        r.left = 0;
    if (r.left && !r.waiting)
        submit_rest(r);
    else if (!r.left && !r.parts)
        done(r);
}

} // namespace vql
