// SPDX-License-Identifier: GPL-2.0-only
// The io_uring engine: files and block devices. It puts its entries into the poller's ring, which
// also carries the poller's wake-ups, so that one wait serves all.
//
// A piece holds a slot from submit() until it is done. A slot goes through steps: an operation that
// comes back short continues with the rest; data that O_DIRECT cannot take goes through a bounce
// buffer, at most bounce_bytes a step; an operation that the file system refuses falls back to the
// next way of doing it. All memory is allocated when the engine is made.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "engine/piece.h"

#include <cstdint>
#include <liburing.h>
#include <vector>

namespace vql {

class uring_engine {
  public:
    static constexpr uint32_t slots = 1024;
    static constexpr uint32_t bounce_buffers = 32;
    static constexpr uint64_t bounce_bytes = 256 << 10;

    struct finished {
        request* owner;
        vql_status status;
    };

    // @ring outlives the engine. Construct on the ring's own thread (IORING_SETUP_SINGLE_ISSUER).
    result<void> open(io_uring& ring);

    // Make @t known under its id. A target without a registered file works too, a little slower.
    void add_target(const target& t);
    void remove_target(const target& t);

    // Pin [base, base + bytes) and return its buffer number for piece::buffer, or -1 (not
    // permitted, no room, memory of a kind that cannot be pinned): then pieces do without.
    int16_t add_buffer(void* base, uint64_t bytes);
    void remove_buffer(int16_t buffer);

    // False: no room for it. Half of the slots are anybody's; when they are in use, each target
    // has its part of the other half: one whose storage does not answer leaves room for the others.
    bool submit(const piece& p);
    // Would submit() have room for a piece on the target of this id?
    bool has_room(uint32_t target) const {
        return free_.size() > slots / 2 || (used_[target] < share_ && !free_.empty());
    }

    // A completion whose user_data came from this engine (and is not 0).
    void complete(uint64_t user_data, int32_t res);

    // Pieces finished since the last clear_done().
    const std::vector<finished>& done() const { return done_; }
    void clear_done() { done_.clear(); }

    // A free entry of the ring: never null, for a full ring is submitted first.
    io_uring_sqe* sqe();
    // Hand everything prepared to the kernel, and take what it has completed.
    void flush();

  private:
    enum class zeroing : uint8_t { punch, range, write };
    // slot::bounce, where it is not the index of one that all share. (Its target's own.)
    static constexpr int16_t no_buffer = -1, own_buffer = -2;

    struct slot {
        piece p;             // offset, bytes, seg, nsegs, skip: what is left to do
        uint64_t step_bytes; // asked for in the step under way
        int16_t bounce;      // the bounce buffer held, or no_buffer or own_buffer
        bool bouncing;
        bool flushing; // the last step: FSYNC for a durable discard or write-zeroes
        zeroing how;
        uint8_t retries;
        slot* next_waiting; // for a bounce buffer
    };

    void start(slot& s);
    void start_data(slot& s);
    void start_zeroes(slot& s);
    void start_discard(slot& s);
    void prep_file(io_uring_sqe* e, const slot& s);
    void advance(slot& s, uint64_t bytes);
    void finish(slot& s, vql_status status);
    void fail(slot& s, int err);
    bool fall_back(slot& s, int err);
    static bool in_block(const slot& s);
    void fill_block(slot& s);
    bool needs_bounce(const slot& s) const;
    void set_share();
    bool take_bounce(slot& s);
    void give_bounce_back(slot& s);
    uint8_t* bounce_of(const slot& s) const {
        return s.bounce == own_buffer ? own_[s.p.where->id].data()
                                      : bounce_.data() + uint64_t(s.bounce) * bounce_bytes;
    }

    io_uring* ring_ = nullptr;
    std::vector<slot> slots_;
    std::vector<slot*> free_;
    std::vector<finished> done_;
    std::vector<iovec>
        iovecs_; // of entries not submitted yet: the kernel copies them at submission
    size_t iovecs_used_ = 0;
    std::vector<uint16_t> used_; // slots, by target id
    size_t targets_ = 0;         // that are known
    uint32_t share_ = slots / 2; // of each of them
    mapping bounce_;
    // By target id: one more bounce buffer for it alone, of which only what is used is memory.
    std::vector<mapping> own_;
    std::vector<bool> own_in_use_;
    mapping zeroes_;
    std::vector<int16_t> free_bounce_;
    slot* waiting_head_ = nullptr; // slots waiting for a bounce buffer, first come first served
    slot* waiting_tail_ = nullptr;
    uint32_t registered_files_ = 0; // size of the ring's file table
    std::vector<bool> file_registered_;
    std::vector<int16_t> free_buffers_;
};

} // namespace vql
