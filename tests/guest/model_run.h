// SPDX-License-Identifier: GPL-2.0-only
// Random I/O on a disk beside a model of it in memory: every read is compared, and at the end the
// model is what the disk must hold.
#pragma once

#include "random_layout.h"

#include <functional>
#include <string>

namespace vql::guest {

// A request as the model sees it: what it shall do to the disk.
struct intent {
    blk_op op = blk_op::read;
    uint64_t first = 0; // bytes
    uint64_t end = 0;
    uint64_t data_seed = 0;
    bool active = false;
};

struct run_options {
    uint32_t max_bytes = 128 << 10; // of one read or write
    bool discard = true;
    bool write_zeroes = true;
    bool writes = true;
    uint32_t max_discard_bytes = 1 << 20;
    uint32_t block_bytes = sector_bytes; // of which everything is a multiple
    uint64_t first_sector = 0;           // the part of the disk to use; sectors 0: all of the model
    uint64_t sectors = 0;
    layout_options layout;
    unsigned indirect_percent = 50; // where the driver has indirect descriptors
    milliseconds timeout = default_timeout();
    // One for each of the driver's requests, queue by queue: what is in flight is noted here before
    // it is. With the model in shared memory, too, another process goes on where one was killed.
    std::span<intent> journal;
};

struct op_counts {
    uint64_t count = 0;
    uint64_t bytes = 0;
};

// What was done, as the device's statistics must tell it.
struct run_counts {
    op_counts read, write, flush, discard, write_zeroes, get_id;
    uint64_t total() const {
        return read.count + write.count + flush.count + discard.count + write_zeroes.count +
               get_id.count;
    }
};

class model_run {
  public:
    // model.size() is the disk's size; it is the disk's content now, but for what the journal says
    // was in flight: settle_lost() comes first then. The driver's requests are this object's from
    // now on.
    model_run(blk_driver& driver, std::span<std::byte> model, uint64_t seed,
              const run_options& options = {});

    // Submits until `operations` were submitted, and waits for all of them.
    void run(uint64_t operations);
    // Like run, but comes back with requests in flight.
    void start(uint64_t operations);
    // Fills the queues as far as they go, then takes what has completed. False when nothing is
    // left to submit.
    bool step();
    void drain();
    void set_options(const run_options& options) { options_ = options; }
    // Also compares the serial number with this when it does a GET_ID.
    void expect_id(std::string id) { id_ = std::move(id); }

    // After the rings were lost: requests in flight were done or not, sector by sector. Reads what
    // the disk holds now, and throws unless it is the old or the new content.
    void settle_lost();

    const run_counts& counts() const { return counts_; }

  private:
    struct operation : intent {
        blk_request* request = nullptr;
        arena place{};
        intent* noted = nullptr; // in the journal
    };

    bool submit_one(unsigned queue);
    bool choose(operation& op);
    bool conflicts(const operation& op) const;
    void shape(operation& op);
    void complete(blk_request& request);
    static void apply(const intent& op, std::span<std::byte> to);
    void settle(const intent& op);
    [[noreturn]] void fail(const intent& op, const std::string& what) const;
    [[noreturn]] void fail(const operation& op, const std::string& what) const;
    operation& operation_of(const blk_request& request);

    blk_driver& driver_;
    std::span<std::byte> model_;
    run_options options_;
    random_source random_;
    uint64_t seed_;
    std::string id_;
    std::vector<std::vector<operation>> operations_; // [queue][token]
    std::vector<blk_request*> waiting_;              // per queue: shaped, but the ring was full
    std::vector<operation*> active_;
    std::vector<std::byte> data_;
    uint64_t left_ = 0;
    run_counts counts_;
};

} // namespace vql::guest
