// SPDX-License-Identifier: GPL-2.0-only
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <unistd.h>

namespace vql::guest {

uint64_t test_seed(uint64_t salt) {
    static const uint64_t seed = [] {
        const char* given = std::getenv("VQL_SEED");
        uint64_t value =
            given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device()();
        std::printf("seed: VQL_SEED=%llu repeats this run's random choices\n",
                    static_cast<unsigned long long>(value));
        std::fflush(stdout);
        return value;
    }();
    return seed + salt * 0x10001;
}

uint64_t scaled(uint64_t n, uint64_t least) {
    const char* given = std::getenv("VQL_TEST_SCALE");
    double scale = given != nullptr ? std::strtod(given, nullptr) : sanitized_build() ? 0.2 : 1.0;
    return std::max(least, static_cast<uint64_t>(static_cast<double>(n) * scale));
}

test_daemon::~test_daemon() noexcept(false) {
    std::string wrong = complaint();
    if (std::uncaught_exceptions() != 0) {
        if (!wrong.empty()) {
            WARN(wrong); // the test has failed already; this may be why
        }
        return;
    }
    CHECK(wrong == "");
    if (wrong.empty() && running()) {
        // A leak checker reports at the end, so it needs an end.
        CHECK(terminate() == 0);
        CHECK(complaint() == "");
    }
}

std::string file_target(const std::string& name, const std::string& path) {
    return "[[target]]\nname = \"" + name + "\"\ntype = \"uring\"\npath = \"" + path + "\"\n";
}

std::string null_target(const std::string& name, const std::string& size) {
    return "[[target]]\nname = \"" + name + "\"\ntype = \"null\"\nsize = \"" + size + "\"\n";
}

std::string disk_on(const std::string& name, const std::string& target, const std::string& extra) {
    return "[[disk]]\nname = \"" + name + "\"\ntarget = \"" + target + "\"\n" + extra + "\n";
}

test_guest::test_guest(const std::string& socket, const guest_options& options)
    : memory(guest_memory::in_pieces(options.memory_base, options.memory_bytes / options.slots,
                                     options.slots)),
      device(socket, options.vhost), driver(*memory, device, options.blk) {
    if (options.start) {
        driver.start();
    }
}

uint64_t compare_backing(const std::vector<std::byte>& model,
                         const std::vector<backing_extent>& extents) {
    uint64_t at = 0;
    std::vector<std::byte> buffer(1 << 20);
    for (const backing_extent& extent : extents) {
        unique_fd file(open(extent.path.c_str(), O_RDONLY | O_CLOEXEC));
        if (!file) {
            throw_errno("cannot open " + extent.path);
        }
        for (uint64_t done = 0; done < extent.bytes;) {
            size_t bytes = std::min<size_t>(buffer.size(), extent.bytes - done);
            ssize_t got =
                pread(file.get(), buffer.data(), bytes, static_cast<off_t>(extent.offset + done));
            if (got <= 0) {
                throw guest_error("cannot read " + extent.path);
            }
            const std::byte* expected = model.data() + at;
            if (std::memcmp(buffer.data(), expected, static_cast<size_t>(got)) != 0) {
                return at + static_cast<uint64_t>(
                                std::mismatch(buffer.data(), buffer.data() + got, expected).first -
                                buffer.data());
            }
            done += static_cast<uint64_t>(got);
            at += static_cast<uint64_t>(got);
        }
    }
    return at;
}

bystander::bystander(const std::string& socket, uint64_t disk_bytes, uint64_t seed) {
    guest_options options;
    options.blk.depth = 8;
    options.memory_bytes = 16 << 20;
    options.blk.interrupts = true;
    guest_ = std::make_unique<test_guest>(socket, options);
    thread_ = std::thread([this, disk_bytes, seed] { serve(disk_bytes, seed); });
}

bystander::~bystander() {
    stop();
}

void bystander::serve(uint64_t disk_bytes, uint64_t seed) {
    try {
        std::vector<std::byte> model(disk_bytes);
        run_options options;
        options.max_bytes = 32 << 10;
        model_run run(guest_->driver, model, seed, options);
        while (!stop_) {
            run.run(16);
            done_ = run.counts().total();
            usleep(500); // leaves the CPUs to the test proper
        }
    } catch (const std::exception& error) {
        error_ = error.what();
        failed_ = true;
    }
}

bool bystander::goes_on(uint64_t more, milliseconds timeout) {
    deadline until(timeout);
    uint64_t goal = done_ + more;
    while (done_ < goal) {
        if (failed_ || until.passed()) {
            return false;
        }
        usleep(500);
    }
    return true;
}

std::string bystander::stop() {
    stop_ = true;
    if (thread_.joinable()) {
        thread_.join();
    }
    return failed_ ? error_ : "";
}

} // namespace vql::guest
