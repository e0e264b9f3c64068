// SPDX-License-Identifier: GPL-2.0-only
// The NVMe engine: namespaces of one controller, through one queue pair that is mapped here. No
// system call: commands are written into the submission queue, one doorbell tells of a whole batch,
// and the completion queue is looked at. Data goes between device and guest memory.
//
// A piece holds a slot from submit() until it is handed back by clear_done(). It becomes one
// command or several: split at the controller's largest transfer, at the namespace's boundary, and
// where PRPs cannot express its segments and the controller has no SGLs. What no command can
// express (parts of a block, addresses that are not dword-aligned) goes through a page of the pool.
// Each command identifier owns one pool page for its list; then comes a page of zeroes; the rest is
// for bouncing. A piece is finished when none of its commands is under way.
//
// A command that has failed for now (vql_nvme_retry_ms()) stays under way, with its identifier,
// list and bounce page: it waits in a list of such, whose time the poller's clock tells, and is
// made again from its piece.
//
// The queue pair may be lost at any moment: its memory is then replaced by zeroes under our hands,
// after the state word was changed. So a completion, or data read through the pool, counts only if
// the state word is looked at afterwards and still says live. Everything unfinished is kept until
// replace() submits it again, from its beginning, or take_unfinished() gives it back.
#pragma once

#include "base/result.h"
#include "engine/piece.h"

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>
#include <vqlane/nvme.h>

namespace vql {

using nvme_queue = vql_nvme_queue;

class nvme_engine {
  public:
    static constexpr uint32_t max_depth = 1024;

    struct finished {
        request* owner;
        vql_status status;
    };

    // @q's memory outlives the engine, or its replacement.
    result<void> open(const nvme_queue& q);

    // Where to write the next piece, for submit(); null: there is no room now.
    piece* room() { return VQL_LIKELY(in_flight_ < slots_.size()) ? &free_->p : nullptr; }
    // Takes what was written there. It may be done on return.
    void submit();
    // Both. False: there is no room.
    bool submit(const piece& p);
    // Tell the controller of all commands since the last call.
    void flush();
    // Take what the controller has completed. What that makes room for waits for flush().
    void reap();

    // When retry() has something to do next, by the clock that it is told; never: nothing waits.
    static constexpr uint64_t never = ~uint64_t{0};
    uint64_t retry_at() const { return retry_at_; }
    // Submit again what has failed for now, and whose time has come.
    void retry(uint64_t now_ns);

    // Pieces finished since the last clear_done().
    std::span<const finished> done() const { return {done_.get(), ndone_}; }
    void clear_done();

    // Pieces taken and not handed back.
    uint32_t in_flight() const { return in_flight_; }
    // Would reap() or done() have something to tell?
    bool pending() const;

    // Identifiers of the commands that were under way in a call at least @limit ago already, and
    // still are. The time is the caller's: submit() reads no clock.
    std::vector<uint16_t> overdue(uint64_t now_ns, uint64_t limit_ns);

    // The queue pair is gone: nothing is submitted or finished until replace().
    bool lost() const { return vql_load_acquire(queue_.state) != 0; }
    // Go on with @q, which was never used, and begins with all that was not finished.
    void replace(const nvme_queue& q);
    // Give all that was not finished back. Only when lost.
    std::vector<piece> take_unfinished();

    // The command that was made last, if it is one of @owner's: its queue and its identifier; or 0
    // and 0.
    std::pair<uint16_t, uint16_t> last_command(const request* owner) const;

    // Completions of commands that were not under way: the controller is broken.
    uint64_t unexpected() const { return unexpected_; }

  private:
    // Of one piece under way, so that a large one leaves room for others.
    static constexpr uint16_t max_commands = 32;
    static constexpr uint16_t index_bits = 10; // of a command identifier; above it, a generation
    static_assert(max_depth == 1u << index_bits);
    static constexpr uint64_t fault = ~uint64_t{0};

    struct cursor {
        const vql_seg* seg;
        uint64_t skip;
        void advance(uint64_t bytes);
    };
    struct slot {
        piece p; // as it was given
        // What no command was made for yet.
        uint64_t offset;
        uint64_t left;
        cursor data;
        slot* next;        // free list, or list of those that wait for a command or bounce page
        uint16_t commands; // under way
        uint8_t status;    // vql_status: the first error
        bool flush_next;   // at last a FLUSH, when no other command is under way
        bool waiting;      // on the list
        bool active;
    };
    struct alignas(64) command {
        slot* owner; // null: free
        uint64_t offset;
        // When overdue() first saw it; or since it has failed: when it is due again. 0: not yet
        // known.
        uint64_t since_ns;
        cursor data; // of a bounced read: where its data goes
        uint32_t bytes;
        int16_t bounce; // pool page, or -1
        uint8_t retries;
        enum class state : uint8_t { plain, aborted, failed } now; // aborted: we asked for it
        uint16_t generation;
        int16_t next; // failed: index of the next one in the list, or -1
        uint32_t delay_ms;
    };
    static constexpr uint32_t max_pool_pages = INT16_MAX;

    void set_queue(const nvme_queue& q);
    bool issue_plain(slot& s);
    void start(slot& s);
    void proceed(slot& s);
    bool issue(slot& s);
    bool issue_data(slot& s);
    bool issue_bounced(slot& s, uint32_t index, vql_nvme_sqe& sqe, uint64_t limit);
    void issue_zeroes(slot& s);
    void issue_discard(slot& s);
    void issue_flush(slot& s);
    uint64_t say_zeroes(const slot& s, uint32_t index, uint64_t offset, uint64_t bytes,
                        vql_nvme_sqe& sqe) const;
    void say_discard(const slot& s, uint32_t index, uint64_t offset, uint64_t bytes,
                     vql_nvme_sqe& sqe) const;
    bool fails_for_now(command& c, uint32_t index, uint32_t status);
    bool say_again(const command& c, uint32_t index, vql_nvme_sqe& sqe) const;
    void submit_again(command& c, uint32_t index);
    void end_command(command& c, uint32_t index, vql_status status, int err);
    uint64_t limit_of(const slot& s, uint32_t op) const;
    bool mapped(const slot& s) const;
    uint64_t build(const slot& s, const cursor& at, uint32_t index, uint64_t limit,
                   vql_nvme_sqe& sqe) const;
    uint64_t build_prp(const piece& p, const cursor& at, uint32_t index, uint64_t bytes,
                       vql_nvme_sqe& sqe) const;
    uint64_t build_sgl(const piece& p, const cursor& at, uint32_t index, uint64_t bytes,
                       vql_nvme_sqe& sqe) const;
    uint32_t begin(const slot& s, vql_nvme_opcode opcode, vql_nvme_sqe& sqe) const;
    void command_of(const slot& s, uint32_t index, vql_nvme_opcode opcode,
                    vql_nvme_sqe& sqe) const {
        vql_nvme_command(&sqe, opcode, cid_of(index), s.p.where->nsid);
    }
    // The entry at the tail is complete. A later one's line is asked for, so that it is here, and
    // ours, when it is written: the controller had it last. (With a controller that is another CPU:
    // 87 ns a request without, 66 with.)
    void move_tail() {
        tail_ = tail_ + 1 == queue_.depth ? 0 : tail_ + 1;
        VQL_PREFETCH_WRITE(&queue_.sq[ahead(tail_)]);
    }
    // A few entries of a queue further on.
    uint32_t ahead(uint32_t at) const { return at + 8 < queue_.depth ? at + 8 : 0; }
    void push(slot& s, uint32_t index, uint64_t offset, uint64_t bytes);
    void put(slot& s, uint32_t index, const vql_nvme_sqe& sqe, uint64_t bytes);
    void put(slot& s, uint32_t index, uint64_t bytes);
    uint16_t cid_of(uint32_t index) const {
        return uint16_t(index | uint32_t(commands_[index].generation) << index_bits);
    }
    static void next_generation(command& c) {
        c.generation = (c.generation + 1) & ((1u << (16 - index_bits)) - 1);
    }
    bool complete(const vql_nvme_cqe& cqe);
    void fail(slot& s, vql_status status, uint64_t offset, int err);
    void finish(slot& s);
    void wait(slot& s);
    void serve_waiting();
    uint32_t fua(const piece& p) const {
        return p.durable && queue_.volatile_cache ? VQL_NVME_FUA : 0;
    }
    uint8_t* page(uint32_t i) const { return queue_.pool + uint64_t(i) * VQL_NVME_PAGE_BYTES; }
    uint64_t page_dma(uint32_t i) const {
        return queue_.pool_dma + uint64_t(i) * VQL_NVME_PAGE_BYTES;
    }

    nvme_queue queue_{};
    uint32_t tail_ = 0;  // of the submission queue
    uint32_t rung_ = 0;  // … as the controller was told
    uint32_t head_ = 0;  // of the completion queue
    uint32_t phase_ = 1; // of this pass over it
    uint32_t zero_page_ = 0;

    std::vector<slot> slots_;
    // By index; of as many as an index can name, so that none of a completion's is too large.
    std::vector<command> commands_;
    std::vector<uint16_t> free_commands_; // the first nfree_ of it
    uint32_t nfree_ = 0;
    uint64_t plain_bytes_ = 0; // the most that one command can carry with one list
    std::vector<int16_t> free_bounce_;
    std::unique_ptr<finished[]> done_; // the first ndone_ of it; has room for all in flight
    uint32_t ndone_ = 0;
    slot* free_ = nullptr;
    slot* waiting_head_ = nullptr; // first come first served
    slot* waiting_tail_ = nullptr;
    int16_t failed_ = -1; // the list of commands that have failed for now
    uint64_t retry_at_ = never;
    uint32_t in_flight_ = 0;
    uint64_t unexpected_ = 0;
};

} // namespace vql
