// SPDX-License-Identifier: GPL-2.0-only
// remap.h as BPF runs it against remap.h as C++ runs it: the same table, the same lookups, the same
// answers. VQL_REMAP_LOOKUPS=N changes how many (ten million; a sanitizer build's take ten times as
// long each).
#include "ebpf/object.h"
#include "remap_diff.h"
#include "unit/extent_tables.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstring>
#include <string>

using namespace vql::test;

namespace {

#if defined(VQL_SANITIZED)
constexpr uint64_t default_lookups = 1000000;
#else
constexpr uint64_t default_lookups = 10000000;
#endif

// Why BPF can't be tested here; empty: it can. From here on a failure is a failure.
std::string why_not() {
    libbpf_set_print(nullptr);
    bpf_map_create_opts opts{};
    opts.sz = sizeof(opts);
    opts.map_flags = BPF_F_MMAPABLE;
    const int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "vql_probe", 4, 8, 1, &opts);
    if (fd < 0)
        return std::string("creating a BPF array map: ") + std::strerror(errno);
    ::close(fd);
    if (libbpf_probe_bpf_prog_type(BPF_PROG_TYPE_SYSCALL, nullptr) != 1)
        return "the kernel loads no BPF syscall programs (Linux 5.14, CAP_BPF)";
    if (libbpf_probe_bpf_helper(BPF_PROG_TYPE_SYSCALL, BPF_FUNC_loop, nullptr) != 1)
        return "the kernel has no bpf_loop() (Linux 5.17)";
    return {};
}

// The values of a mmapable array map.
template <class T>
class map_values {
  public:
    map_values(bpf_object* object, const char* name, size_t count)
        : bytes_((sizeof(T) * count + 4095) / 4096 * 4096) {
        const int fd = bpf_object__find_map_fd_by_name(object, name);
        void* at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED)
            FAIL("mmap of map " << name << ": " << std::strerror(errno));
        at_ = static_cast<T*>(at);
    }
    map_values(const map_values&) = delete;
    map_values& operator=(const map_values&) = delete;
    ~map_values() { ::munmap(at_, bytes_); }

    T* data() const { return at_; }
    T& operator[](size_t i) const { return at_[i]; }

  private:
    size_t bytes_;
    T* at_ = nullptr;
};

bool same(const vql_remap& a, const vql_remap& b) {
    return a.verdict == b.verdict && a.target == b.target && a.sector == b.sector &&
           a.sectors == b.sectors;
}

} // namespace

TEST_CASE("bpf: remap answers in BPF what it answers in C++", "[bpf][remap]") {
    if (const std::string reason = why_not(); !reason.empty())
        SKIP("BPF is not permitted here: " << reason);
    const char* given = std::getenv("VQL_REMAP_LOOKUPS");
    const uint64_t lookups = given ? std::strtoull(given, nullptr, 0) : default_lookups;

    const std::string path = VQL_TEST_BPF_DIR "/remap_diff.bpf.o";
    const vql::bpf_object_ptr object(bpf_object__open_file(path.c_str(), nullptr));
    if (!object)
        FAIL(path << ": " << std::strerror(errno) << " (the build makes it; VQL_BUILD names the "
                  << "build folder)");
    if (const int err = bpf_object__load(object.get()))
        FAIL(path << ": the kernel refuses it: " << std::strerror(-err));
    const int program =
        bpf_program__fd(bpf_object__find_program_by_name(object.get(), "remap_diff"));
    // The default program has the same loop, and is verified when a daemon starts.
    bpf_prog_info info{};
    uint32_t info_bytes = sizeof(info);
    REQUIRE(bpf_obj_get_info_by_fd(program, &info, &info_bytes) == 0);
    CHECK(info.verified_insns > 0);
    CHECK(info.verified_insns < 2000); // with each round of the loop walked through: 55,150
    const map_values<__u64> extents(object.get(), "extents", REMAP_DIFF_CHUNKS);
    const map_values<remap_diff_case> cases(object.get(), "cases", REMAP_DIFF_BATCH);

    random_source random(40);
    uint64_t served = 0, merged = 0, other = 0;
    for (uint64_t done = 0; done < lookups;) {
        const auto batch =
            static_cast<uint32_t>(std::min<uint64_t>(lookups - done, REMAP_DIFF_BATCH));
        fill_extents(random, extents.data(), REMAP_DIFF_CHUNKS);
        for (uint32_t i = 0; i < batch; i++) {
            const auto shift =
                static_cast<uint32_t>(random.between(VQL_MIN_CHUNK_SHIFT, VQL_MAX_CHUNK_SHIFT));
            const lookup l = random_lookup(random, shift, REMAP_DIFF_CHUNKS);
            cases[i] = {l.sector, l.sectors, shift, 0, {}};
        }
        remap_diff_run run = {batch, 0};
        bpf_test_run_opts opts{};
        opts.sz = sizeof(opts);
        opts.ctx_in = &run; // written back, too
        opts.ctx_size_in = sizeof(run);
        if (bpf_prog_test_run_opts(program, &opts))
            FAIL("running the program: " << std::strerror(errno));
        REQUIRE(run.done == batch);
        for (uint32_t i = 0; i < batch; i++) {
            const remap_diff_case& c = cases[i];
            const vql_extent_table table = {extents.data(), REMAP_DIFF_CHUNKS, c.chunk_shift};
            const vql_remap here =
                vql_remap_lookup(&table, vql_extent_table_at, vql_extent_table_run, c.chunk_shift,
                                 c.sector, c.sectors);
            if (!c.answered || !same(here, c.answer))
                FAIL("seed " << run_seed() << ", lookup " << done + i << ": shift " << c.chunk_shift
                             << ", sector " << c.sector << ", sectors " << c.sectors
                             << ": BPF says verdict " << c.answer.verdict << ", target "
                             << c.answer.target << ", sector " << c.answer.sector << ", sectors "
                             << c.answer.sectors);
            const uint64_t chunk_sectors = 1ull << (c.chunk_shift - VQL_SECTOR_SHIFT);
            served += here.verdict == VQL_SERVE;
            merged += here.verdict == VQL_SERVE && here.sectors > chunk_sectors;
            other += here.verdict != VQL_SERVE;
        }
        done += batch;
    }
    // The lookups are of all kinds, or the comparison is worth little.
    CHECK(served > lookups / 10);
    CHECK(other > lookups / 10);
    CHECK(merged > lookups / 100);
}
