# How our own code is compiled.

find_program(THINWIRE_CCACHE ccache)
if(THINWIRE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # The sloppiness is what ccache needs to cache a file that uses a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${THINWIRE_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${THINWIRE_CCACHE})
endif()

add_library(thinwire_compile INTERFACE)
# Replicated arithmetic must not depend on what a compiler chooses to fuse.
set(_cxx -Wall -Wextra -Wconversion -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
    -ffp-contract=off)
set(_cuda -fmad=false --prec-div=true --prec-sqrt=true -Xcompiler=-fPIC,-Wall,-Wextra)
target_compile_options(thinwire_compile INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${_cxx}>" "$<$<COMPILE_LANGUAGE:CUDA>:${_cuda}>")
option(THINWIRE_WERROR "warnings are errors" OFF)
if(THINWIRE_WERROR)
  # g++ 12 sees overlaps and accesses beyond the end where strings are joined or moved that cannot be
  # (GCC bugs 105651 and 105329).
  target_compile_options(thinwire_compile INTERFACE
                         $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                         "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-error=restrict;-Wno-error=array-bounds;-Wno-error=stringop-overflow>"
                         "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(THINWIRE_SANITIZE STREQUAL "address")
  set(_sanitize -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(THINWIRE_SANITIZE STREQUAL "thread")
  set(_sanitize -fsanitize=thread -fno-omit-frame-pointer)
elseif(THINWIRE_SANITIZE)
  message(FATAL_ERROR "THINWIRE_SANITIZE is '${THINWIRE_SANITIZE}'; give address or thread")
endif()
if(THINWIRE_SANITIZE)
  target_compile_options(thinwire_compile INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${_sanitize}>")
  target_link_options(thinwire_compile INTERFACE ${_sanitize})
endif()

# The parts of the package: what needs MPI, CUDA or NCCL is exported apart, so that the rest can be
# used without these.
set(THINWIRE_PARTS core mpi cuda nccl)

# One library per layer and backend: thinwire_library(name) makes thinwire_<name> and its alias
# thinwire::<name>. With PART it is installed, and exported with that part of the package. Sources
# are added with target_sources().
function(thinwire_library name)
  cmake_parse_arguments(arg "" "PART" "" ${ARGN})
  add_library(thinwire_${name} STATIC)
  target_compile_features(thinwire_${name} PUBLIC cxx_std_20)
  target_include_directories(thinwire_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/thinwire>)
  target_link_libraries(thinwire_${name} PUBLIC thinwire::torch PRIVATE $<BUILD_INTERFACE:thinwire_compile>)
  thinwire_export(${name} "${arg_PART}")
endfunction()

# The same of a library that is nothing but what it links.
function(thinwire_collection name part)
  add_library(thinwire_${name} INTERFACE)
  target_link_libraries(thinwire_${name} INTERFACE ${ARGN})
  thinwire_export(${name} ${part})
endfunction()

function(thinwire_export name part)
  add_library(thinwire::${name} ALIAS thinwire_${name})
  set_target_properties(thinwire_${name} PROPERTIES EXPORT_NAME ${name})
  if(part)
    set_property(GLOBAL APPEND PROPERTY THINWIRE_LIBRARIES_${part} thinwire_${name})
  endif()
endfunction()

# Those files of a target (none given: all) that run a few times in a run, and so may be compiled with
# less care: that takes a fifth less time.
function(thinwire_rarely_run target)
  set(_less "$<$<CONFIG:RelWithDebInfo,Release>:-O1>")
  if(ARGN)
    set_property(SOURCE ${ARGN} TARGET_DIRECTORY ${target} APPEND PROPERTY COMPILE_OPTIONS "${_less}")
  else()
    target_compile_options(${target} PRIVATE "${_less}")
  endif()
endfunction()

# Two precompiled headers, each compiled once and made before anything else. They are there for time
# only: every file includes what it uses, and builds with CMAKE_DISABLE_PRECOMPILE_HEADERS=ON too.
function(thinwire_precompiled name)
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/${name}.cpp" CONTENT "")
  add_library(thinwire_${name} OBJECT "${PROJECT_BINARY_DIR}/${name}.cpp")
  target_link_libraries(thinwire_${name} PRIVATE thinwire::torch thinwire_compile)
  target_precompile_headers(thinwire_${name} PRIVATE ${ARGN})
endfunction()

# For files with tensors: reading it takes 1 s, where one <ATen/ops/...> takes 4.
thinwire_precompiled(tensor_pch
  <ATen/core/Tensor.h> <ATen/ops/empty.h> <ATen/ops/zeros.h> <ATen/ops/zeros_like.h> <fmt/format.h>
  <algorithm> <functional> <memory> <optional> <string> <vector>)
function(thinwire_use_tensor_pch target)
  target_precompile_headers(${target} REUSE_FROM thinwire_tensor_pch)
endfunction()

# The same for a library's few files with modules: together they read <torch/torch.h> once, which takes less
# time than to make the precompiled header and read it. What else needs that is tests.
function(thinwire_in_one_go target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
endfunction()

# For files with modules or torch::optim: reading it takes 5 s, where <torch/torch.h> takes 16.
thinwire_precompiled(torch_pch <torch/torch.h>)
function(thinwire_use_torch_pch target)
  target_precompile_headers(${target} REUSE_FROM thinwire_torch_pch)
endfunction()
