# One image for every node of a mesh. Build and start four of them: docker compose up
#
# BASE is what the image runs on. BUILDER_BASE may be a variant of it that also knows a package
# mirror or a certificate authority of yours; nothing of it ends up in the image.
ARG BASE=python:3.11-slim
ARG BUILDER_BASE=${BASE}

FROM ${BUILDER_BASE} AS builder
# cpu or cuda (for NVIDIA GPUs; gigabytes more). PyTorch publishes a build for each in an index of
# its own; TORCH_INDEX names another place.
ARG VARIANT=cpu
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python3 -m venv /opt/shoal

# The dependencies first and by themselves: this layer of a gigabyte stays cached while the code
# changes. Torch comes before the others so that only it is looked for in its own index. Its C++
# tests and headers, 150 MB, are of no use to a node.
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; \
print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && case "${VARIANT}" in \
        cpu) builds=cpu ;; \
        cuda) builds=cu130 ;; \
        *) echo "VARIANT is cpu or cuda, not ${VARIANT}" >&2; exit 2 ;; \
    esac \
    && /opt/shoal/bin/pip install --constraint constraints.txt \
        --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/${builds}}" torch \
    && /opt/shoal/bin/pip install --constraint constraints.txt --requirement requirements.txt \
    && rm -rf /opt/shoal/lib/python3.*/site-packages/torch/test \
        /opt/shoal/lib/python3.*/site-packages/torch/include

# The folders that src/shoal links to must lie beside src, as they do in the repository.
COPY README.md ./
COPY src src
COPY proto proto
COPY compression compression
COPY gossip gossip
COPY consensus consensus
COPY training training
COPY serving serving
COPY node node
RUN /opt/shoal/bin/pip wheel --no-deps --wheel-dir /wheel .

FROM ${BASE}
# A node needs no rights. /data is its volume; /mesh/nodeI are where `shoal init` finds the volumes
# of a new mesh; an invitation is handed on in /invitation. An empty volume takes the owner of the
# folder that it is mounted on.
RUN useradd --uid 10001 --create-home shoal \
    && install --directory --owner shoal --group shoal --mode 0700 \
        /data /invitation /mesh /mesh/node0 /mesh/node1 /mesh/node2 /mesh/node3
COPY --from=builder /opt/shoal /opt/shoal
COPY --from=builder /wheel /wheel
RUN /opt/shoal/bin/pip install --no-cache-dir --no-index --no-deps /wheel/*.whl
# The last two are for NVIDIA's container runtime, where there is one.
ENV PATH=/opt/shoal/bin:${PATH} PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER shoal
WORKDIR /data
EXPOSE 7400 7500
ENTRYPOINT ["shoal"]
CMD ["run", "/data"]
