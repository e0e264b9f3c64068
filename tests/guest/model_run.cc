// SPDX-License-Identifier: GPL-2.0-only
#include "model_run.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace vql::guest {

model_run::model_run(blk_driver& driver, std::span<std::byte> model, uint64_t seed,
                     const run_options& options)
    : driver_(driver), model_(model), options_(options), random_(seed), seed_(seed),
      operations_(driver.options().queues), waiting_(driver.options().queues) {
    unsigned depth =
        driver.options().depth == 0 ? driver.options().queue_size : driver.options().depth;
    uint64_t bytes = arena::bytes_for(options.max_bytes, options.layout.max_pieces);
    size_t note = 0;
    for (auto& queue : operations_) {
        queue.resize(depth);
        for (operation& op : queue) {
            op.place = {driver.memory().allocate(bytes, 4096), bytes};
            op.noted = options.journal.empty() ? nullptr : &options.journal[note++];
        }
    }
    active_.reserve(depth * operations_.size());
    data_.resize(options.max_bytes);
}

model_run::operation& model_run::operation_of(const blk_request& request) {
    return operations_[request.queue][request.token];
}

void model_run::fail(const intent& op, const std::string& what) const {
    throw guest_error(what + " (type " + std::to_string(static_cast<uint32_t>(op.op)) + ", bytes " +
                      std::to_string(op.first) + " to " + std::to_string(op.end) + ", seed " +
                      std::to_string(seed_) + ")");
}

void model_run::fail(const operation& op, const std::string& what) const {
    fail(static_cast<const intent&>(op), what + ", " + describe(*op.request));
}

// Two requests in flight have no order, so they must not touch the same sectors, unless both read.
bool model_run::conflicts(const operation& op) const {
    return std::any_of(active_.begin(), active_.end(), [&op](const operation* other) {
        return op.first < other->end && other->first < op.end &&
               (op.op != blk_op::read || other->op != blk_op::read);
    });
}

bool model_run::choose(operation& op) {
    uint64_t dice = random_.below(100);
    op.op = dice < 44 ? blk_op::read : blk_op::write;
    if (dice >= 88) {
        op.op = dice < 91   ? blk_op::flush
                : dice < 93 ? blk_op::get_id
                : dice < 96 ? blk_op::discard
                            : blk_op::write_zeroes;
    }
    bool off = (op.op == blk_op::discard && !options_.discard) ||
               (op.op == blk_op::write_zeroes && !options_.write_zeroes);
    if (off || (op.op == blk_op::write && !options_.writes)) {
        op.op = blk_op::read;
    }
    op.first = op.end = 0;
    if (op.op == blk_op::flush || op.op == blk_op::get_id) {
        return true;
    }
    const uint32_t block = options_.block_bytes;
    uint64_t total =
        (options_.sectors != 0 ? options_.sectors * sector_bytes : model_.size()) / block;
    bool ranged = op.op == blk_op::discard || op.op == blk_op::write_zeroes;
    uint64_t most = (ranged ? options_.max_discard_bytes : options_.max_bytes) / block;
    for (int attempt = 0; attempt < 20; attempt++) {
        // Small, page-sized and large ones alike, often about the border of a 64 KiB chunk.
        uint64_t limit = random_.chance(50) ? 16 : random_.chance(80) ? most / 4 : most;
        uint64_t count = random_.between(1, std::clamp<uint64_t>(limit, 1, std::min(most, total)));
        if (random_.chance(30)) {
            count = std::min<uint64_t>(8, total);
        }
        uint64_t first = random_.below(total - count + 1);
        if (random_.chance(20)) {
            first -= first % ((64 << 10) / block);
            first -= std::min(first, random_.below(count));
        }
        op.first = options_.first_sector * sector_bytes + first * block;
        op.end = op.first + count * block;
        if (!conflicts(op)) {
            return true;
        }
    }
    return false;
}

void model_run::shape(operation& op) {
    blk_request& request = *op.request;
    request.type = static_cast<uint32_t>(op.op);
    request.sector = op.first / sector_bytes;
    uint64_t bytes = op.end - op.first;
    std::span<const std::byte> out;
    uint32_t data_in = 0;
    blk_range range{};
    switch (op.op) {
    case blk_op::read: data_in = static_cast<uint32_t>(bytes); break;
    case blk_op::write:
        op.data_seed = random_.next();
        random_source(op.data_seed).fill(std::span(data_).first(bytes));
        out = std::span(data_).first(bytes);
        break;
    case blk_op::get_id:
        data_in = id_bytes;
        request.sector = 0;
        break;
    case blk_op::discard:
    case blk_op::write_zeroes:
        range = {request.sector, static_cast<uint32_t>(bytes / sector_bytes),
                 op.op == blk_op::write_zeroes && random_.chance(50) ? range_unmap : 0};
        request.sector = 0;
        out = bytes_of(range);
        break;
    case blk_op::flush: request.sector = 0; break;
    }
    layout_options layout = options_.layout;
    request.indirect = driver_.options().indirect && random_.chance(options_.indirect_percent);
    if (!request.indirect) {
        layout.max_descriptors =
            std::min<unsigned>(layout.max_descriptors, driver_.options().queue_size);
    }
    shape_randomly(random_, driver_.memory(), op.place, layout, request, out, data_in);
}

bool model_run::submit_one(unsigned queue) {
    if (waiting_[queue] == nullptr) {
        if (left_ == 0) {
            return false;
        }
        blk_request* request = driver_.acquire(queue);
        if (request == nullptr) {
            return false;
        }
        operation& op = operation_of(*request);
        op.request = request;
        if (!choose(op)) {
            driver_.release(*request);
            return false;
        }
        shape(op);
        op.active = true;
        active_.push_back(&op);
        if (op.noted != nullptr) {
            *op.noted = op;
        }
        waiting_[queue] = request;
        left_--;
    }
    if (!driver_.submit(*waiting_[queue])) {
        return false;
    }
    waiting_[queue] = nullptr;
    return true;
}

// The content that a write-like operation leaves in its range.
void model_run::apply(const intent& op, std::span<std::byte> to) {
    if (op.op == blk_op::write) {
        random_source(op.data_seed).fill(to);
    } else {
        // DISCARD punches a hole, so it reads as zeroes like WRITE ZEROES.
        std::memset(to.data(), 0, to.size());
    }
}

void model_run::complete(blk_request& request) {
    operation& op = operation_of(request);
    if (!request.ok()) {
        fail(op, "status " + std::to_string(request.status));
    }
    if (!guards_intact(driver_.memory(), request)) {
        fail(op, "the device wrote outside the buffers");
    }
    uint64_t bytes = op.end - op.first;
    std::span<std::byte> content(model_.data() + op.first, bytes);
    switch (op.op) {
    case blk_op::read: {
        size_t same = compare_in(driver_.memory(), request, content);
        if (same != bytes) {
            fail(op, "wrong data at byte " + std::to_string(op.first + same));
        }
        counts_.read.count++;
        counts_.read.bytes += bytes;
        break;
    }
    case blk_op::write:
        apply(op, content);
        counts_.write.count++;
        counts_.write.bytes += bytes;
        break;
    case blk_op::discard:
        apply(op, content);
        counts_.discard.count++;
        counts_.discard.bytes += bytes;
        break;
    case blk_op::write_zeroes:
        apply(op, content);
        counts_.write_zeroes.count++;
        counts_.write_zeroes.bytes += bytes;
        break;
    case blk_op::flush: counts_.flush.count++; break;
    case blk_op::get_id: {
        std::array<char, id_bytes> expected{};
        std::copy_n(id_.begin(), std::min<size_t>(id_.size(), id_bytes), expected.begin());
        if (!id_.empty() &&
            compare_in(driver_.memory(), request, std::as_bytes(std::span(expected))) != id_bytes) {
            fail(op, "wrong serial number");
        }
        counts_.get_id.count++;
        break;
    }
    }
    op.active = false;
    if (op.noted != nullptr) { // release: the model has it before the journal forgets it
        std::atomic_ref(op.noted->active).store(false, std::memory_order_release);
    }
    active_.erase(std::find(active_.begin(), active_.end(), &op));
    driver_.release(request);
}

bool model_run::step() {
    for (unsigned queue = 0; queue < operations_.size(); queue++) {
        // A random number at a time, so that batches of all sizes are published.
        bool submitted = false;
        for (uint64_t n = random_.between(1, operations_[queue].size()); n > 0; n--) {
            if (!submit_one(queue)) {
                break;
            }
            submitted = true;
        }
        if (submitted) {
            driver_.ring(queue);
        }
    }
    for (unsigned queue = 0; queue < operations_.size(); queue++) {
        while (blk_request* request = driver_.poll(queue)) {
            complete(*request);
        }
    }
    return left_ != 0 || std::any_of(waiting_.begin(), waiting_.end(),
                                     [](const blk_request* r) { return r != nullptr; });
}

void model_run::start(uint64_t operations) {
    left_ = operations;
}

void model_run::run(uint64_t operations) {
    start(operations);
    while (step()) {
        if (driver_.in_flight() != 0) {
            complete(driver_.next(options_.timeout));
        }
    }
    drain();
}

void model_run::drain() {
    left_ = 0;
    for (bool more = true; more;) {
        more = step();
        if (driver_.in_flight() != 0) {
            complete(driver_.next(options_.timeout));
            more = true;
        }
    }
}

void model_run::settle_lost() {
    left_ = 0;
    std::fill(waiting_.begin(), waiting_.end(), nullptr);
    for (operation* op : active_) {
        op->active = false;
    }
    for (const operation* op : active_) {
        if (op->noted == nullptr) {
            settle(*op);
        }
    }
    active_.clear();
    for (intent& noted : options_.journal) { // of this process, or of one that was killed
        if (noted.active) {
            settle(noted);
            noted.active = false;
        }
    }
}

// Each sector is as before the request, or as it left it: so it is in the model from now on.
void model_run::settle(const intent& op) {
    uint64_t bytes = op.end - op.first;
    if (op.op == blk_op::read || bytes == 0) {
        return;
    }
    std::vector<std::byte> now(bytes);
    std::vector<std::byte> written(bytes);
    apply(op, written);
    if (driver_.read(op.first / sector_bytes, now).status != blk_ok) {
        fail(op, "cannot be read after the rings were lost");
    }
    for (uint64_t at = 0; at < bytes; at += sector_bytes) {
        std::byte* model = model_.data() + op.first + at;
        if (std::memcmp(now.data() + at, model, sector_bytes) != 0 &&
            std::memcmp(now.data() + at, written.data() + at, sector_bytes) != 0) {
            fail(op, "neither old nor new content at byte " + std::to_string(op.first + at));
        }
        std::memcpy(model, now.data() + at, sector_bytes);
    }
}

} // namespace vql::guest
